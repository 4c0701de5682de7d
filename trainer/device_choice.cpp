#include "trainer/device_choice.h"

#include <fmt/format.h>

#include "parallel/nccl_communicator.h"
#include "parallel/self_communicator.h"

namespace sluice {

DeviceChoice parse_device(const std::string& word) {
  const auto names = enum_names(DeviceChoice{});
  for (size_t i = 0; i < names.size(); ++i) {
    if (word == names[i]) return DeviceChoice(i);
  }
  throw UsageError(fmt::format("--device is auto, cpu or cuda, got '{}'", word));
}

Device choose_device(DeviceChoice choice, Precision precision, const LocalRank& local) {
  FoundGpus gpus;
  if (choice != DeviceChoice::cpu) gpus.count = num_cuda_devices();
  if (choice != DeviceChoice::cpu && gpus.count == 0) gpus.why_none = why_no_cuda_device();
  return choose_device(choice, precision, local, gpus);
}

Device choose_device(DeviceChoice choice, Precision precision, const LocalRank& local,
                     const FoundGpus& gpus) {
  if (choice == DeviceChoice::cuda && gpus.count == 0)
    throw UsageError(fmt::format("device: cuda, but {}; or set device: cpu", gpus.why_none));
  const bool on_cpu = choice == DeviceChoice::cpu || gpus.count == 0;
  if (on_cpu && precision == Precision::bf16) {
    throw UsageError(fmt::format("precision: bf16 needs a GPU, but {}; or set precision: f32",
                                 choice == DeviceChoice::cpu ? "device is cpu" : gpus.why_none));
  }
  if (on_cpu) return kCpu;
  if (local.size > gpus.count) {
    throw UsageError(
        fmt::format("{} ranks on this host, which has {} GPU{}: start {} here, or set device: cpu",
                    local.size, gpus.count, gpus.count == 1 ? "" : "s", gpus.count));
  }
  return {Device::Kind::cuda, int8_t(local.rank)};
}

DeviceWorld::DeviceWorld(Communicator& world, const Place& place) : world_(world) {
  if (place.device.is_cpu()) return;
  own_ = world.size() == 1 ? make_self_communicator(place)
                           : make_nccl_communicator(
                                 world, {.device = place.device.index, .stream = place.stream});
}

void DeviceWorld::shutdown() {
  if (own_) own_->shutdown();
}

void DeviceWorld::give_up() {
  if (own_) own_->abort(ExitCode::hang);
}

}  // namespace sluice
