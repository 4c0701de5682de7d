#include <fmt/format.h>

#include <map>

#include "kernels/core/threads.h"
#include "trainer/commands/commands.h"
#include "trainer/training_run.h"

namespace sluice {

namespace {

void require_supported(const Config& config) {
  if (config.device == DeviceChoice::cuda) {
    throw UsageError(
        "device: cuda needs a build with CUDA; this one has none: set device: auto or cpu");
  }
  if (config.parallel.cp != 1 || config.parallel.ep != 1) {
    throw UsageError(
        fmt::format("this version trains data-parallel only: set parallel.cp and "
                    "parallel.ep to 1 (got {} and {})",
                    config.parallel.cp, config.parallel.ep));
  }
  if (config.precision == Precision::bf16) {
    throw UsageError("precision: bf16 on the CPU needs a build with oneDNN: set precision: f32");
  }
}

// Every rank must have read the same configuration.
void require_equal_configs(CheckpointPeers& peers, const Config& config) {
  const std::vector<std::string> texts = peers.all_gather(resolved_yaml(config));
  for (size_t rank = 1; rank < texts.size(); ++rank) {
    if (texts[rank] != texts[0]) {
      throw AgreedFailure(ExitCode::usage,
                          fmt::format("rank {} read another configuration than rank 0; give "
                                      "all ranks the same file and overrides",
                                      rank));
    }
  }
}

int train(const TrainOptions& options, World& world) {
  CommunicatorPeers peers(*world.comm);
  Config config;
  MeshShape shape;
  agree(peers, [&] {
    config = load_config(options.config, options.overrides).config;
    require_supported(config);
    shape = resolve_mesh({.dp = int(config.parallel.dp.value_or(kAuto)),
                          .ep = int(config.parallel.ep),
                          .cp = int(config.parallel.cp)},
                         world.comm->size());
  });
  require_equal_configs(peers, config);
  set_num_threads(config.train.threads > 0 ? int(config.train.threads)
                                           : default_num_threads(world.local_size));
  Mesh mesh(*world.comm, shape);
  std::vector<std::string> arguments = {"train", options.config};
  arguments.insert(arguments.end(), options.overrides.begin(), options.overrides.end());
  TrainingRun run(config,
                  {.folder = run_folder_path(options.run, config.name),
                   .resume = options.resume,
                   .arguments = std::move(arguments)},
                  world, mesh);
  return int(run.run());
}

}  // namespace

int run_train(const TrainOptions& options) {
  World world = make_world();
  return run_on_world(world, [&] { return train(options, world); });
}

}  // namespace sluice
