#include "trainer/plan.h"

#include <fmt/format.h>
#include <unistd.h>

#include "parallel/self_communicator.h"
#include "trainer/gradient_accumulation.h"
#include "trainer/optimizer.h"
#include "trainer/step_memory.h"
#include "trainer/trainer.h"

namespace sluice {

namespace {

// "branches.3.mamba2.A_log" -> "mamba2"; the norm before a branch -> "norm".
std::string kind_of(const std::string& name) {
  if (name.rfind("branches.", 0) != 0) return name.substr(0, name.find('.'));
  const size_t begin = name.find('.', sizeof("branches.") - 1) + 1;
  return name.substr(begin, name.find('.', begin) - begin);
}

// The share of a parameter that one token goes through.
double active_share(const Parameter& parameter, const std::vector<BranchConfig>& branches) {
  if (parameter.flags.group != ReduceGroup::expert) return 1;
  const size_t index = std::stoul(parameter.name.substr(sizeof("branches.") - 1));
  const MoeConfig& moe = std::get<MoeConfig>(branches[index].config);
  return double(moe.top_k) / double(moe.experts);
}

std::string remedy_of(const Plan& plan, const Config& config) {
  if (plan.fits()) return "";
  const int64_t fixed = plan.values + plan.gradients + plan.optimizer;
  if (fixed > plan.available)
    return "more memory, or fewer parameters: weights and optimizer alone do not fit";
  if (config.train.micro_batch > 1) return "train.micro_batch=1";
  if (config.train.recompute != Recompute::full) return "train.recompute=full";
  return "a shorter train.seq_len";
}

std::string gib(int64_t bytes) {
  return fmt::format("{:10.3f} GiB", double(bytes) / double(1 << 30));
}

}  // namespace

Plan make_plan(const Config& config, int world) {
  Plan plan;
  plan.mesh = resolve_mesh({.dp = int(config.parallel.dp.value_or(kAuto)),
                            .ep = int(config.parallel.ep),
                            .cp = int(config.parallel.cp)},
                           world);
  const StepShape shape = step_shape(config.train, plan.mesh.dp, 0);
  ParameterStore store(DType::f32);
  const Model model(config.model, store, {.recompute = config.train.recompute});
  store.freeze(/*allocate=*/false);
  double active = 0;
  for (const Parameter& parameter : store.parameters()) {
    const int64_t count = parameter.dims.numel();
    plan.total_params += count;
    plan.by_kind[kind_of(parameter.name)] += count;
    active += active_share(parameter, model.branches()) * double(count);
  }
  plan.active_params = int64_t(active);
  plan.flops_per_token = model.flops_per_token(config.train.seq_len);
  plan.stack = stack_letters(model.branches());

  const std::unique_ptr<Communicator> self = make_self_communicator();
  const GradientAccumulation accumulation(store, *self, shape.micro_batches,
                                          config.train.global_batch,
                                          /*allocate=*/false);
  const ArenaPeaks peaks = count_training(model, config.train.micro_batch, config.train.seq_len);
  const int64_t flat_bytes = store.flat_size() * int64_t(size_of(store.dtype()));
  plan.values = flat_bytes;
  plan.gradients = accumulation.bytes();
  plan.optimizer = 2 * flat_bytes;
  plan.saved = int64_t(peaks.saved);
  plan.scratch = int64_t(peaks.scratch);
  plan.available = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGE_SIZE)) / world;
  // Gradients travel twice, each time all but a rank's own share: scattered as parts, gathered as
  // sums.
  plan.wire_bytes_per_step["dp"] = 2 * (flat_bytes - flat_bytes / plan.mesh.dp);
  plan.checkpoint_bytes = 3 * plan.total_params * int64_t(sizeof(float));
  plan.remedy = remedy_of(plan, config);
  return plan;
}

nlohmann::json to_json(const Plan& plan) {
  nlohmann::json json = {
      {"params",
       {{"total", plan.total_params}, {"active", plan.active_params}, {"by_kind", plan.by_kind}}},
      {"flops_per_token", plan.flops_per_token},
      {"memory_per_rank",
       {{"values", plan.values},
        {"gradients", plan.gradients},
        {"optimizer", plan.optimizer},
        {"saved", plan.saved},
        {"scratch", plan.scratch},
        {"total", plan.memory()},
        {"available", plan.available}}},
      {"wire_bytes_per_step", plan.wire_bytes_per_step},
      {"checkpoint_bytes", plan.checkpoint_bytes},
      {"mesh", {{"dp", plan.mesh.dp}, {"ep", plan.mesh.ep}, {"cp", plan.mesh.cp}}},
      {"stack", plan.stack},
      {"fits", plan.fits()}};
  if (!plan.remedy.empty()) json["remedy"] = plan.remedy;
  return json;
}

std::string describe(const Plan& plan) {
  std::string text =
      fmt::format("stack             {}\nmesh              {}\n", plan.stack, to_string(plan.mesh));
  text += fmt::format("parameters        {} ({} active)\n", plan.total_params, plan.active_params);
  for (const auto& [kind, count] : plan.by_kind)
    text += fmt::format("  {:<16}{:>14}\n", kind, count);
  text += fmt::format("FLOPs a token     {:.4g} (forward and backward)\n", plan.flops_per_token);
  text += "memory of a rank\n";
  text += fmt::format("  values        {}\n", gib(plan.values));
  text += fmt::format("  gradients     {}\n", gib(plan.gradients));
  text += fmt::format("  optimizer     {}\n", gib(plan.optimizer));
  text += fmt::format("  saved         {}\n", gib(plan.saved));
  text += fmt::format("  scratch       {}\n", gib(plan.scratch));
  text += fmt::format("  total         {} of {} here\n", gib(plan.memory()), gib(plan.available));
  for (const auto& [axis, bytes] : plan.wire_bytes_per_step) {
    text += fmt::format("sent over {:<7} {} a step and rank\n", axis, gib(bytes));
  }
  text += fmt::format("checkpoint      {}\n", gib(plan.checkpoint_bytes));
  if (!plan.fits()) text += fmt::format("does not fit: try {}\n", plan.remedy);
  return text;
}

}  // namespace sluice
