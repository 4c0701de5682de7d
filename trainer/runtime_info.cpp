#include "trainer/runtime_info.h"

#include <fmt/format.h>

#include "kernels/core/device_name.h"
#include "kernels/core/threads.h"
#include "parallel/nccl_communicator.h"

namespace sluice {

namespace {

std::string instruction_set() {
  if (__builtin_cpu_supports("avx512f")) return "avx512";
  if (__builtin_cpu_supports("avx2")) return "avx2";
  return "sse2";
}

std::string describe(Device device) {
  if (device.is_cpu()) return device_name(device);
  return fmt::format("{}, {}, NCCL {}", device_name(device), device_libraries(device),
                     nccl_version());
}

}  // namespace

RuntimeInfo runtime_info(Device device) {
  return {.threads = num_threads(),
          .blas = "openblas",
          .blas_version = blas_version(),
          .isa = instruction_set(),
          .device = describe(device)};
}

std::vector<std::string> runtime_changes(const RuntimeInfo& saved, const RuntimeInfo& present) {
  std::vector<std::string> changes;
  const auto compare = [&](const char* what, const std::string& before, const std::string& now) {
    if (before != now) changes.push_back(fmt::format("{} was {}, is {}", what, before, now));
  };
  if (!saved.device.empty()) compare("the device", saved.device, present.device);
  if (present.device != device_name(kCpu)) return changes;
  compare("the BLAS library", saved.blas + " " + saved.blas_version,
          present.blas + " " + present.blas_version);
  compare("the instruction set", saved.isa, present.isa);
  return changes;
}

}  // namespace sluice
