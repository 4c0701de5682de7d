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
  const int gpus = choice == DeviceChoice::cpu ? 0 : num_cuda_devices();
  if (choice == DeviceChoice::cuda && gpus == 0) {
    throw UsageError(fmt::format("device: cuda, but {}; or set device: cpu", why_no_cuda_device()));
  }
  if (gpus == 0 && precision == Precision::bf16) {
    throw UsageError("precision: bf16 on the CPU needs a build with oneDNN: set precision: f32");
  }
  if (gpus == 0) return kCpu;
  if (local.size > gpus) {
    throw UsageError(
        fmt::format("{} ranks on this host, which has {} GPU{}: start {} here, or set device: cpu",
                    local.size, gpus, gpus == 1 ? "" : "s", gpus));
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
