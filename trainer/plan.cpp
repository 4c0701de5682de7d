#include "trainer/plan.h"

#include <fmt/format.h>
#include <unistd.h>

#include "trainer/step_engine.h"

namespace sluice {

namespace {

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

std::string parameter_kind(const std::string& name) {
  if (name.rfind("branches.", 0) != 0) return name.substr(0, name.find('.'));
  const size_t begin = name.find('.', sizeof("branches.") - 1) + 1;
  return name.substr(begin, name.find('.', begin) - begin);
}

Plan make_plan(const Config& config, int world) {
  Plan plan;
  plan.mesh = resolve_mesh({.dp = int(config.parallel.dp.value_or(kAuto)),
                            .ep = int(config.parallel.ep),
                            .cp = int(config.parallel.cp)},
                           world);
  const Mesh mesh(plan.mesh, 0);
  StepEngine engine(config, mesh);
  engine.count_step();
  for (const Mesh::Group& group : mesh.groups()) {
    int64_t& bytes = plan.wire_bytes_per_step[group.axes];
    for (int verb = 0; verb < kNumVerbs; ++verb) bytes += group.group->traffic(Verb(verb)).sent;
  }
  engine.count_evaluation();
  const ParameterStore& store = engine.store();
  const Model& model = engine.model();
  double active = 0;
  for (const Parameter& parameter : store.parameters()) {
    const int64_t count = parameter.global_dims.numel();
    plan.total_params += count;
    plan.by_kind[parameter_kind(parameter.name)] += count;
    active += active_share(parameter, model.branches()) * double(count);
  }
  plan.active_params = int64_t(active);
  plan.flops_per_token = model.flops_per_token(config.train.seq_len);
  plan.stack = stack_letters(model.branches());

  const EngineMemory memory = engine.memory();
  plan.values = memory.values;
  plan.gradients = memory.gradients;
  plan.optimizer = memory.optimizer;
  plan.saved = memory.saved;
  plan.scratch = memory.scratch;
  plan.carried = memory.carried;
  plan.available = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGE_SIZE)) / world;
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
        {"carried", plan.carried},
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
