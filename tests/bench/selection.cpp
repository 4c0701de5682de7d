#include "tests/bench/selection.h"

#include <algorithm>

#include "kernels/core/device_memory.h"
#include "kernels/core/dispatch.h"
#include "tests/bench/cases.h"
#include "trainer/suggest.h"

namespace sluice::bench {

Target choose_target(const std::string& device, const std::string& precision) {
  const bool has_gpu = num_cuda_devices() > 0;
  if (device == "cuda" && !has_gpu) {
    throw UsageError(kBuiltWithCuda
                         ? "--device cuda: this machine has no GPU that the driver knows"
                         : "--device cuda: this build has no CUDA; build with SLUICE_WITH_CUDA=ON");
  }
  const bool on_gpu = device == "cuda" || (device == "auto" && has_gpu);
  if (!on_gpu && precision == "bf16") {
    throw UsageError("--precision bf16 needs a GPU: the CPU's operators compute in f32");
  }
  if (!on_gpu) return {};
  return {.device = {Device::Kind::cuda, 0},
          .dtype = precision == "f32" ? DType::f32 : DType::bf16,
          .stream = {}};
}

bool is_chosen(const std::vector<std::string>& ops, const std::string& name) {
  return ops.empty() || std::find(ops.begin(), ops.end(), name) != ops.end();
}

std::vector<Family> select_families(const Target& target, const std::vector<std::string>& ops) {
  std::vector<Family> all = families(target);
  std::vector<std::string> names = {kStep};
  for (const Family& family : all) names.push_back(family.name);
  for (const std::string& op : ops) {
    if (std::find(names.begin(), names.end(), op) != names.end()) continue;
    throw UsageError("--ops: there is no operator '" + op + "'" + did_you_mean(op, names) +
                     "\nknown: " + join(names));
  }
  std::erase_if(all, [&](const Family& family) { return !is_chosen(ops, family.name); });
  return all;
}

}  // namespace sluice::bench
