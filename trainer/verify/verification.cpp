#include "trainer/verify/verification.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <mutex>

#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "trainer/verify/reduced_config.h"
#include "trainer/verify/tensor_norms.h"

namespace sluice {

namespace {

constexpr double kGradientTolerance = 1e-6;  // of difference quotients
constexpr double kTolerance64 = 1e-10;
constexpr double kTolerance32 = 2e-5;
constexpr double kSmallestLoss = 1e-6;  // to which an error is put in relation

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  SLUICE_CHECK(a.size() == b.size(), "comparing ", a.size(), " values with ", b.size());
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(squares);
}

void raise(Difference& difference, double error, const std::string& where) {
  if (!is_worse(error, difference.error)) return;
  difference.error = error;
  difference.where = where;
}

Difference compare_tensors(const std::string& quantity, const std::vector<WholeTensor>& got,
                           const std::vector<WholeTensor>& expected, double tolerance) {
  SLUICE_CHECK(got.size() == expected.size(), quantity, ": ", got.size(), " tensors, one rank has ",
               expected.size());
  Difference difference{quantity, 0, tolerance, ""};
  double all = 0;
  for (const WholeTensor& tensor : expected) all = std::hypot(all, norm_of(tensor.values));
  for (size_t i = 0; i < got.size(); ++i) {
    SLUICE_CHECK(got[i].name == expected[i].name, quantity, ": ", got[i].name, " in place of ",
                 expected[i].name);
    const double scale = comparison_scale(norm_of(expected[i].values), all);
    raise(difference, distance(got[i].values, expected[i].values) / scale, got[i].name);
  }
  return difference;
}

Difference compare_losses(const LayoutTrace& got, const LayoutTrace& expected, double tolerance) {
  Difference difference{"loss", 0, tolerance, ""};
  const auto compare = [&](const char* what, const std::vector<double>& a,
                           const std::vector<double>& b) {
    for (size_t step = 0; step < a.size(); ++step) {
      const double scale = std::max(std::fabs(b[step]), kSmallestLoss);
      raise(difference, std::fabs(a[step] - b[step]) / scale, concat(what, " of step ", step + 1));
    }
  };
  compare("loss", got.losses, expected.losses);
  compare("auxiliary loss", got.auxiliary, expected.auxiliary);
  compare("gradient norm", got.grad_norms, expected.grad_norms);
  return difference;
}

// What one rank does, in both dtypes, with its choices of experts.
struct Reference {
  Reference(const Config& reduced, const VerifyScope& scope) : config(reduced), scope(scope) {
    config.parallel.zero = 0;
    const auto self = make_self_communicator();
    f64 = trace_layout(*self, {}, {.config = config, .routing = &choices});
    const auto here = on_gpu() ? make_self_communicator(scope.place) : nullptr;
    f32 = trace_layout(*self, {},
                       {.config = config,
                        .dtype = DType::f32,
                        .steps = 1,
                        .routing = &replayed,
                        .place = scope.place,
                        .device_world = here.get()});
    replayed.dictate();
  }
  bool on_gpu() const { return scope.place.device.is_cuda(); }

  Config config;
  const VerifyScope& scope;
  RoutingTape choices;   // in f64
  RoutingTape replayed;  // in f32, to be dictated
  LayoutTrace f64, f32;
};

std::string reason_to_skip(const Config& reduced, const MeshShape& shape) {
  if (shape.ep == 1) return "";
  int64_t moe_branches = 0;
  for (const BranchConfig& branch : reduced.model.stack.branches) {
    const auto* moe = std::get_if<MoeConfig>(&branch.config);
    if (moe == nullptr) continue;
    ++moe_branches;
    if (moe->experts % shape.ep != 0) {
      return concat("parallel.ep ", shape.ep, " does not divide the ", moe->experts,
                    " experts of the reduced model: sluice train refuses it too");
    }
  }
  return moe_branches == 0 ? "there are no experts to share" : "";
}

LayoutCheck check_f64(Communicator& world, const MeshShape& shape, int zero,
                      const Reference& reference) {
  Config config = reference.config;
  config.parallel.zero = zero;
  const LayoutTrace trace =
      trace_layout(world, shape, {.config = config, .expected = &reference.choices});
  return {.mesh = shape,
          .zero = zero,
          .dtype = DType::f64,
          .skipped = {},
          .differences = compare_traces(trace, reference.f64, kTolerance64)};
}

LayoutCheck check_f32(Communicator& world, const MeshShape& shape, Reference& reference) {
  const LayoutTrace trace = trace_layout(world, shape,
                                         {.config = reference.config,
                                          .dtype = DType::f32,
                                          .steps = 1,
                                          .routing = &reference.replayed,
                                          .place = reference.scope.place,
                                          .device_world = reference.scope.device_world});
  return {.mesh = shape,
          .zero = 0,
          .dtype = DType::f32,
          .device = reference.scope.place.device.kind,
          .skipped = {},
          .differences = compare_traces(trace, reference.f32, kTolerance32)};
}

// The largest difference of all ranks, each of which compared what it holds.
void merge(Communicator& world, LayoutCheck& check) {
  for (Difference& difference : check.differences) {
    std::vector<double> errors(world.size());
    world.all_gather(TensorView(&difference.error, {1}), TensorView(errors.data(), {world.size()}))
        .wait();
    Difference worst{};
    for (int rank = 0; rank < world.size(); ++rank) raise(worst, errors[rank], concat(rank));
    const int from = worst.where.empty() ? 0 : std::stoi(worst.where);
    std::array<uint8_t, 256> where{};
    std::copy_n(difference.where.begin(), std::min(difference.where.size(), where.size() - 1),
                where.begin());
    world.broadcast(TensorView(where.data(), {int64_t(where.size())}), from).wait();
    difference.error = errors[from];
    difference.where = reinterpret_cast<const char*>(where.data());
  }
}

using Report = std::function<void(const LayoutCheck&)>;

// All layouts of one world; `run` calls its body on every rank of it.
using RunRanks = std::function<void(const std::function<void(Communicator&)>&)>;
void check_world(int size, const RunRanks& run, Reference& reference, const Report& report,
                 std::vector<LayoutCheck>& checks) {
  const auto add = [&](const LayoutCheck& check) {
    checks.push_back(check);
    if (report) report(check);
  };
  for (const MeshShape& shape : possible_meshes(size)) {
    const std::string reason = reason_to_skip(reference.config, shape);
    if (!reason.empty()) {
      add({.mesh = shape, .skipped = reason, .differences = {}});
      continue;
    }
    const auto on_ranks = [&](const std::function<LayoutCheck(Communicator&)>& body) {
      LayoutCheck check;
      std::once_flag first;
      run([&](Communicator& world) {
        LayoutCheck own = body(world);
        merge(world, own);
        std::call_once(first, [&] { check = std::move(own); });  // now equal on all ranks
      });
      add(check);
    };
    for (const int zero : {0, 1, 2}) {
      on_ranks([&](Communicator& world) { return check_f64(world, shape, zero, reference); });
    }
    on_ranks([&](Communicator& world) { return check_f32(world, shape, reference); });
  }
}

}  // namespace

std::vector<Difference> compare_traces(const LayoutTrace& got, const LayoutTrace& one_rank,
                                       double tolerance) {
  std::vector<Difference> differences = {compare_losses(got, one_rank, tolerance)};
  if (!got.gradients.empty()) {
    differences.push_back(
        compare_tensors("gradients", got.gradients, one_rank.gradients, tolerance));
  }
  // Adam turns the rounding of a zero gradient into a step of lr: f64 only.
  if (!got.parameters.empty()) {
    differences.push_back(
        compare_tensors("parameters", got.parameters, one_rank.parameters, tolerance));
    differences.push_back({"replicas", got.replicas_equal ? 0.0 : 1.0, 0, ""});
  }
  if (got.choices > 0)
    differences.push_back({"choices", double(got.flipped), 0, concat("of ", got.choices)});
  return differences;
}

bool LayoutCheck::holds() const {
  return std::all_of(differences.begin(), differences.end(),
                     [](const Difference& difference) { return difference.holds(); });
}

bool Verification::holds() const {
  return std::all_of(kinds.begin(), kinds.end(),
                     [&](const KindCheck& kind) { return kind.error <= gradient_tolerance; }) &&
         std::all_of(layouts.begin(), layouts.end(),
                     [](const LayoutCheck& layout) { return layout.holds(); });
}

Verification verify(const Config& config, World& world, const VerifyScope& scope) {
  const auto start = std::chrono::steady_clock::now();
  const int size = world.comm->size();
  const bool threads = std::string(world.comm->name()) == "self";
  const std::vector<int>& worlds = scope.thread_worlds;
  const Config reduced =
      reduce_config(config, threads ? *std::max_element(worlds.begin(), worlds.end()) : size);
  Verification verification;
  verification.stack = stack_letters(reduced.model.stack.branches);
  verification.gradient_tolerance = kGradientTolerance;
  verification.kinds = check_gradients(reduced);
  SLUICE_CHECK(!scope.place.device.is_cuda() || (scope.device_world != nullptr && !threads),
               "layouts on GPUs need the ranks of a launcher");
  Reference reference(reduced, scope);
  if (threads) {
    for (const int ranks : worlds) {
      check_world(
          ranks, [&](const std::function<void(Communicator&)>& body) { run_ranks(ranks, body); },
          reference, scope.report, verification.layouts);
    }
  } else {
    const Report report = world.comm->rank() == 0 ? scope.report : Report{};
    check_world(
        size, [&](const std::function<void(Communicator&)>& body) { body(*world.comm); }, reference,
        report, verification.layouts);
  }
  verification.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return verification;
}

}  // namespace sluice
