#include "kernels/core/threads.h"
#include "trainer/commands/commands.h"
#include "trainer/device_choice.h"
#include "trainer/same_program.h"
#include "trainer/training_run.h"

namespace sluice {

namespace {

int train(const TrainOptions& options, World& world) {
  CommunicatorPeers peers(*world.comm);
  const Config config = load_same_config(peers, options.config, options.overrides,
                                         {{"--run", options.run}, {"--resume", options.resume}});
  MeshShape shape;
  Device device;
  agree(peers, [&] {
    device = choose_device(config.device, config.precision,
                           {.rank = world.local_rank, .size = world.local_size});
    shape = mesh_shape(config.parallel, world.comm->size());
  });
  set_num_threads(config.train.threads > 0 ? int(config.train.threads)
                                           : default_num_threads(world.local_size));
  const OwnedStream stream(device);
  const Place place{.device = device, .stream = stream};
  DeviceWorld device_world(*world.comm, place);
  Mesh mesh(device_world.comm(), shape);
  std::vector<std::string> arguments = {"train", options.config};
  arguments.insert(arguments.end(), options.overrides.begin(), options.overrides.end());
  const ExitCode code = [&] {
    TrainingRun run(config,
                    {.folder = run_folder_path(options.run, config.name),
                     .resume = options.resume,
                     .arguments = std::move(arguments)},
                    world, mesh, place);
    try {
      return run.run();
    } catch (...) {
      device_world.give_up();
      throw;
    }
  }();
  mesh.shutdown();
  device_world.shutdown();
  return int(code);
}

}  // namespace

int run_train(const TrainOptions& options) {
  World world = make_world();
  return run_on_world(world, [&] { return train(options, world); });
}

}  // namespace sluice
