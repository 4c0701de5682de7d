#include "tests/bench/selection.h"

#include <algorithm>

#include "kernels/core/device_memory.h"
#include "kernels/core/error.h"
#include "tests/bench/cases.h"
#include "trainer/suggest.h"

namespace sluice::bench {
namespace {

void require_known(const char* option, const char* what, const std::vector<std::string>& asked,
                   const std::vector<std::string>& known) {
  for (const std::string& name : asked) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    throw UsageError(concat(option, ": there is no ", what, " '", name, "'",
                            did_you_mean(name, known), "\nknown: ", join(known)));
  }
}

}  // namespace

Target choose_target(const std::string& device, const std::string& precision) {
  const bool has_gpu = num_cuda_devices() > 0;
  if (device == "cuda" && !has_gpu) {
    throw UsageError("--device cuda: " + why_no_cuda_device());
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

std::vector<Family> select_families(const Target& target, const std::vector<std::string>& ops,
                                    bool plain) {
  if (plain && target.device.is_cpu())
    throw UsageError("--plain needs a GPU: the CPU has one path for all shapes");
  std::vector<Family> all = plain ? plain_families(target) : families(target);
  std::vector<std::string> names;
  if (!plain) names.push_back(kStep);
  for (const Family& family : all) names.push_back(family.name);
  require_known("--ops", "operator", ops, names);
  std::erase_if(all, [&](const Family& family) { return !is_chosen(ops, family.name); });
  return all;
}

std::vector<StepCase> select_steps(const Target& target, const std::vector<std::string>& ops,
                                   const std::vector<std::string>& models) {
  std::vector<StepCase> all = step_cases(target);
  std::vector<std::string> names;
  for (const StepCase& step : all) {
    if (names.empty() || names.back() != step.config) names.push_back(step.config);
  }
  require_known("--models", "model", models, names);
  if (!is_chosen(ops, kStep)) return {};
  std::erase_if(all, [&](const StepCase& step) { return !is_chosen(models, step.config); });
  return all;
}

}  // namespace sluice::bench
