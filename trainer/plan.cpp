#include "trainer/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "kernels/core/device_memory.h"
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

std::string gib(int64_t bytes) {
  return fmt::format("{:10.3f} GiB", double(bytes) / double(1 << 30));
}

bool is_dropless(const BranchConfig& branch) {
  const MoeConfig* const moe = std::get_if<MoeConfig>(&branch.config);
  return moe != nullptr && moe->dropless();
}

// Bytes over every group, if they are more than another rank's, and what experts without a capacity
// may add: a rank that gets all tokens of its group, or sends all of its own away, moves up to as
// many times the even share as the group has ranks.
void read_traffic(const Mesh& mesh, const Config& config, const Model& model, Plan& plan) {
  const bool routed = std::any_of(model.branches().begin(), model.branches().end(), is_dropless);
  for (const Mesh::Group& group : mesh.groups()) {
    int64_t bytes = 0;
    for (int verb = 0; verb < kNumVerbs; ++verb) bytes += group.group->traffic(Verb(verb)).sent;
    int64_t& most = plan.wire_bytes_per_step[group.axes];
    most = std::max(most, bytes);
    if (group.axes != "ep" || !routed) continue;
    const int64_t even = group.group->traffic(Verb::all_to_all_v).sent;
    int64_t& bound = plan.wire_bytes_bound["ep"];
    bound = std::max(bound, bytes + (config.parallel.ep - 1) * even);
  }
}

// A plan is made anywhere, also where there is no GPU.
constexpr int64_t kPlannedGpuBytes = int64_t{80} * 1000 * 1000 * 1000;

Device device_of(const Config& config) {
  const bool needs_gpu = config.device == DeviceChoice::cuda || config.precision == Precision::bf16;
  const bool takes_gpu = config.device == DeviceChoice::auto_ && num_cuda_devices() > 0;
  return {needs_gpu || takes_gpu ? Device::Kind::cuda : Device::Kind::cpu, 0};
}

// Of one rank.
int64_t available_bytes(Device device, int world) {
  if (device.is_cpu()) return int64_t(memory_of(device)) / world;
  return num_cuda_devices() > 0 ? int64_t(memory_of(device)) : kPlannedGpuBytes;
}

Plan plan_without_remedy(const Config& config, int world, int64_t available) {
  Plan plan;
  plan.available = available;
  const Device device = device_of(config);
  plan.mesh = mesh_shape(config.parallel, world);
  const Mesh mesh(plan.mesh, 0);
  StepEngine engine(config, mesh, compute_dtype(config.precision), {.device = device});
  engine.count_step();
  plan.stack = stack_letters(engine.model().branches());
  plan.exchanges = engine.model().exchanges();
  plan.kernels = engine.model().kernels(engine.micro_batch_rows(), config.train.seq_len);
  read_traffic(mesh, config, engine.model(), plan);
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

  const EngineMemory memory = engine.memory();
  plan.values = memory.values;
  plan.gradients = memory.gradients;
  plan.optimizer = memory.optimizer;
  plan.saved = memory.saved;
  plan.scratch = memory.scratch;
  plan.carried = memory.carried;
  plan.checkpoint_bytes = 3 * plan.total_params * int64_t(sizeof(float));
  return plan;
}

// Sequence ranks do not all send as much: the last has no halo to give, and on a ring those in the
// middle pass on the keys of the ranks before them.
void read_traffic_of_sequence_ranks(const Config& config, Plan& plan) {
  for (int rank = 1; rank < plan.mesh.cp; ++rank) {
    const Mesh mesh(plan.mesh, rank);
    StepEngine engine(config, mesh, compute_dtype(config.precision), {.device = device_of(config)});
    engine.count_step();
    read_traffic(mesh, config, engine.model(), plan);
  }
}

// Why gradients that are summed in the order of trainer/gradient_accumulation.h are not those of
// other numbers of dp ranks. Empty: they are.
std::string why_bits_differ(const Config& config, const MeshShape& mesh) {
  if (mesh.ep > 1) return "experts are spread over ranks";
  if (mesh.cp > 1) return "rows are spread over ranks";
  const int64_t of_rank = config.train.global_batch / config.train.micro_batch / mesh.dp;
  const bool in_turn = config.parallel.zero == 2;
  if (std::has_single_bit(uint64_t(in_turn ? of_rank : mesh.dp))) return "";
  return in_turn ? fmt::format("a rank has {} micro-batches, no power of two", of_rank)
                 : fmt::format("dp {} is no power of two", mesh.dp);
}

// Beside the GPU's own order, which gives equal bits for every run of this layout.
std::string cost_of_layout(const Config& config, int world, const Plan& plan) {
  if (config.train.reproducible == Reproducible::run || device_of(config).is_cpu()) return "";
  Config cheaper = config;
  cheaper.train.reproducible = Reproducible::run;
  const Plan run = plan_without_remedy(cheaper, world, plan.available);
  std::string text = fmt::format(
      "train.reproducible: layout takes {:.3f} GiB of gradients, run takes {:.3f}",
      double(plan.gradients) / double(1 << 30), double(run.gradients) / double(1 << 30));
  for (const auto& [axes, bytes] : run.wire_bytes_per_step) {
    if (axes.find("dp") == std::string::npos) continue;
    text += fmt::format("; it sends {:.2f} times the bytes over {}",
                        double(plan.wire_bytes_per_step.at(axes)) / double(bytes), axes);
  }
  const std::string why_not = why_bits_differ(config, plan.mesh);
  return why_not.empty() ? text : text + "; bits are not those of another dp: " + why_not;
}

// The first change of the configuration, in order of what it costs, that makes the run fit.
std::string remedy_of(const Config& config, int world, int64_t available) {
  std::vector<std::pair<std::string, Config>> changes;
  Config changed = config;  // each on top of those before it
  const auto add = [&](const std::string& text) {
    changes.emplace_back(changes.empty() ? text : changes.back().first + " " + text, changed);
  };
  for (const int64_t zero : {1, 2}) {
    if (world == 1 || changed.parallel.zero >= zero) continue;
    changed.parallel.zero = zero;
    changes.clear();  // the higher degree holds the lower one
    add(fmt::format("parallel.zero={}", zero));
  }
  if (changed.train.reproducible == Reproducible::layout && device_of(config).is_cuda()) {
    changed.train.reproducible = Reproducible::run;
    add("train.reproducible=run");
  }
  if (changed.train.micro_batch > 1) {
    changed.train.micro_batch = 1;
    add("train.micro_batch=1");
  }
  if (changed.train.recompute != Recompute::full) {
    changed.train.recompute = Recompute::full;
    add("train.recompute=full");
  }
  for (const auto& [text, candidate] : changes) {
    if (plan_without_remedy(candidate, world, available).fits()) return text;
  }
  return "";
}

}  // namespace

std::string parameter_kind(const std::string& name) {
  if (name.rfind("branches.", 0) != 0) return name.substr(0, name.find('.'));
  const size_t begin = name.find('.', sizeof("branches.") - 1) + 1;
  return name.substr(begin, name.find('.', begin) - begin);
}

Plan make_plan(const Config& config, int world) {
  return make_plan(config, world, available_bytes(device_of(config), world));
}

Plan make_plan(const Config& config, int world, int64_t available) {
  Plan plan = plan_without_remedy(config, world, available);
  read_traffic_of_sequence_ranks(config, plan);
  plan.reproducible = cost_of_layout(config, world, plan);
  if (plan.fits()) return plan;
  plan.remedy = remedy_of(config, world, available);
  if (!plan.remedy.empty()) return plan;
  const int64_t fixed = plan.values + plan.gradients + plan.optimizer;
  plan.remedy = fixed > plan.available
                    ? "more memory or more ranks: weights, gradients and optimizer alone do not fit"
                    : "a shorter train.seq_len, or more ranks with parallel.cp to share it";
  return plan;
}

Plan require_memory(const Config& config, int world, Device device) {
  Plan plan = make_plan(config, world, int64_t(free_memory_of(device)));
  require_fit(plan, device, int64_t(memory_of(device)));
  return plan;
}

void require_fit(const Plan& plan, Device device, int64_t total) {
  if (plan.fits()) return;
  const auto gib = [](int64_t bytes) { return double(bytes) / double(1 << 30); };
  throw UsageError(
      fmt::format("a step needs {:.2f} GiB of GPU {}, where {:.2f} of {:.2f} GiB are free: try {}",
                  gib(plan.memory()), device.index, gib(plan.available), gib(total), plan.remedy));
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
      {"wire_bytes_bound", plan.wire_bytes_bound},
      {"exchanges", plan.exchanges},
      {"kernels", plan.kernels},
      {"reproducible", plan.reproducible},
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
    text +=
        fmt::format("sent over {:<7} {} a step, by the rank that sends most\n", axis, gib(bytes));
    const auto bound = plan.wire_bytes_bound.find(axis);
    if (bound != plan.wire_bytes_bound.end())
      text +=
          fmt::format("  at most       {} if experts are loaded unevenly\n", gib(bound->second));
  }
  for (const std::string& exchange : plan.exchanges) text += exchange + "\n";
  for (const std::string& kernels : plan.kernels) text += kernels + "\n";
  if (!plan.reproducible.empty()) text += plan.reproducible + "\n";
  text += fmt::format("checkpoint      {}\n", gib(plan.checkpoint_bytes));
  if (!plan.fits()) text += fmt::format("does not fit: try {}\n", plan.remedy);
  return text;
}

}  // namespace sluice
