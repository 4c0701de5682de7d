// A Moe on any layout, and the same written as one loop over tokens. Everything that a pass gives
// is put together as one rank would have it.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "layers/ffn/moe.h"
#include "layers/recompute.h"
#include "layers/routing_tape.h"
#include "tests/support/batch.h"
#include "tests/support/layouts.h"

namespace sluice::test {

struct MoeProblem {
  MoeConfig config;
  int64_t B = 4, T = 7, D = 6;
  DType dtype = DType::f64;
  bool recompute = false;
  double skew = 0;                 // added to the choice bias of experts 0 and 1
  RoutingTape* routing = nullptr;  // records or dictates

  Tensor x() const { return normal({B, T, D}, dtype, 1); }
  Tensor dy() const { return normal({B, T, D}, dtype, 2); }
};

// What a layout computes.
struct MoeOutcome {
  Tensor y, dx;
  std::map<std::string, Tensor> gradients;  // of whole parameters
  StepStatistics statistics;
  int64_t gathers = 0;            // calls of all_gather on a rank's exchange groups
  Traffic exchanged;              // all_to_all_v between experts' ranks, the most of any rank
  size_t saved = 0, scratch = 0;  // peaks of rank 0's arenas
};

// The layer and its parameters, perturbed by the index in the whole parameter.
struct MoeOnRank {
  MoeOnRank(const MoeProblem& problem, const LayerGroups& groups) : store(problem.dtype) {
    layer = std::make_unique<Moe>(
        LayerBuild{.store = store, .prefix = "moe.", .d_model = problem.D, .groups = groups},
        problem.config);
    if (problem.recompute) layer = std::make_unique<RecomputeLayer>(std::move(layer));
    store.freeze();
    store.initialise(7);
    for (const Parameter& parameter : store.parameters()) {
      const TensorView value = store.value(store.find(parameter.name));
      const RngKey key{.seed = 11, .stream = hash_name(parameter.name)};
      dispatch_float(problem.dtype, [&]<class T>() {
        for (int64_t i = 0; i < value.numel(); ++i) {
          value.as<T>()[i] += T(0.05 * random_normal(key, parameter.first_element() + i));
          if (parameter.name == "moe.router.bias" && i < 2) value.as<T>()[i] += T(problem.skew);
        }
      });
    }
    gradients = zeros({store.flat_size()}, problem.dtype);
    store.bind_gradients(gradients);
  }
  ParameterStore store;
  std::unique_ptr<Layer> layer;
  Tensor gradients;
};

// Everybody's gradients, summed by whoever reduces them, at their place in the whole.
inline void collect_gradients(const Mesh& mesh, const ParameterStore& store, std::mutex& mutex,
                              MoeOutcome& outcome) {
  for (const Parameter& parameter : store.parameters()) {
    const bool expert = parameter.flags.group == ReduceGroup::expert;
    const Tensor sum = sum_over(mesh.joined({expert ? Axis::edp : Axis::dp, Axis::cp}),
                                copy_of(store.grad(store.find(parameter.name))));
    if (mesh.at().cp > 0 || (expert ? mesh.at().edp : mesh.at().dp) > 0) continue;
    const std::lock_guard lock(mutex);
    Tensor& whole = outcome.gradients[parameter.name];
    if (!whole.view()) whole = Tensor(parameter.global_dims, store.dtype());
    for (int64_t i = 0; i < sum.numel(); ++i) whole.set(parameter.first_element() + i, sum.get(i));
  }
}

inline void collect_statistics(const Mesh& mesh, const StepStatistics& of_rank, int64_t experts,
                               StepStatistics& sum) {
  std::vector<double> values = {of_rank.balance_loss, of_rank.z_loss};
  const std::vector<double>& counts = of_rank.expert_counts.at(0);
  values.insert(values.end(), counts.begin(), counts.end());
  mesh.world().all_reduce(TensorView(values.data(), {experts + 2}), ReduceOp::sum).wait();
  if (mesh.world().rank() > 0) return;
  sum.balance_loss = values[0];
  sum.z_loss = values[1];
  sum.expert_counts[0].assign(values.begin() + 2, values.end());
}

// The most of any rank, on rank 0.
inline Traffic most_exchanged(const Mesh& mesh) {
  const Traffic own = mesh.axis(Axis::ep).traffic(Verb::all_to_all_v);
  std::array<int64_t, 4> most = {own.calls, own.contributed, own.sent, own.received};
  mesh.world().all_reduce(TensorView(most.data(), {4}), ReduceOp::max).wait();
  return {most[0], most[1], most[2], most[3]};
}

inline MoeOutcome run_moe(const MoeProblem& problem, const MeshShape& shape) {
  const TestRows batch(problem.B, problem.T);
  const Tensor x = problem.x(), dy = problem.dy();
  MoeOutcome outcome;
  outcome.y = Tensor(x.dims(), problem.dtype);
  outcome.dx = Tensor(x.dims(), problem.dtype);
  std::mutex mutex;
  run_layout(shape, [&](const Mesh& mesh) {
    Communicator &cp = mesh.axis(Axis::cp), &ep = mesh.axis(Axis::ep);
    MoeOnRank rank(problem, {.sequence = &cp, .experts = &ep});
    const ShardRows shard(batch, mesh);
    const Tensor x_part = shard.cut(x), dy_part = shard.cut(dy);
    Tensor y_part(x_part.dims(), problem.dtype), dx_part(x_part.dims(), problem.dtype);
    TestContext ctx;
    const StatisticsBuffer statistics({{0, problem.config.experts}});
    {
      const ArenaScope saved(ctx.saved());
      const auto tape = rank.layer->forward(
          ctx, shard,
          {.x = x_part, .y = y_part, .statistics = &statistics.sink(), .routing = problem.routing});
      rank.layer->backward(ctx, shard, {.dy = dy_part, .dx = dx_part}, *tape);
    }
    EXPECT_EQ(ctx.scratch().used(), 0u) << "scratch memory was not released";
    shard.paste(y_part, outcome.y);
    shard.paste(dx_part, outcome.dx);
    const int64_t gathers = cp.traffic(Verb::all_gather).calls + ep.traffic(Verb::all_gather).calls;
    collect_gradients(mesh, rank.store, mutex, outcome);
    const Traffic exchanged = most_exchanged(mesh);
    collect_statistics(mesh, statistics.read(ctx), problem.config.experts, outcome.statistics);
    if (mesh.world().rank() > 0) return;
    outcome.gathers = gathers;
    outcome.exchanged = exchanged;
    outcome.saved = ctx.saved().peak();
    outcome.scratch = ctx.scratch().peak();
  });
  return outcome;
}

// One loop over rows, tokens and choices, forward only, in double. Reads the parameters of one
// rank.
class PlainMoe {
 public:
  PlainMoe(const MoeProblem& problem, const std::vector<int32_t>* dictated = nullptr)
      : problem_(problem), c_(problem.config), dictated_(dictated), rank_(problem, {}) {
    y = zeros({problem.B, problem.T, problem.D}, problem.dtype);
    counts.resize(c_.experts, 0);
    const Tensor x = problem.x();
    for (int64_t b = 0; b < problem.B; ++b) add_row(b, x);
  }
  Tensor y;
  double balance = 0, z = 0;  // means over rows, with their coefficients
  std::vector<double> counts;
  int64_t dropped = 0;

 private:
  const double* value(const std::string& name) const {
    return rank_.store.value(rank_.store.find("moe." + name)).as<double>();
  }
  std::vector<double> product(const double* matrix, int64_t rows, const std::vector<double>& v) {
    std::vector<double> out(rows, 0);
    for (int64_t i = 0; i < rows; ++i) {
      for (size_t j = 0; j < v.size(); ++j) out[i] += matrix[i * v.size() + j] * v[j];
    }
    return out;
  }
  std::vector<double> feed_forward(const double* up, const double* down, int64_t F,
                                   const std::vector<double>& x) {
    const bool gated = c_.activation == Activation::swiglu;
    std::vector<double> hidden = product(up, gated ? 2 * F : F, x);
    for (int64_t i = 0; i < F; ++i) {
      const double h = hidden[i];
      hidden[i] = gated ? h / (1 + std::exp(-h)) * hidden[F + i] : std::pow(std::max(h, 0.0), 2);
    }
    hidden.resize(F);
    return product(down, int64_t(x.size()), hidden);
  }
  // The best of `open`, which is closed.
  static int64_t best(const std::vector<double>& values, std::vector<bool>& open) {
    int64_t found = -1;
    for (size_t i = 0; i < values.size(); ++i) {
      if (open[i] && (found < 0 || values[i] > values[found])) found = int64_t(i);
    }
    open[found] = false;
    return found;
  }
  std::vector<int64_t> choose(const std::vector<double>& p) const {
    std::vector<double> score = p;
    const bool biased = rank_.store.find("moe.router.bias").index >= 0;
    for (size_t e = 0; e < p.size() && biased; ++e) score[e] += value("router.bias")[e];
    const int64_t per_group = c_.experts / c_.groups;
    std::vector<double> group_score;
    for (int64_t g = 0; g < c_.groups; ++g) {
      std::vector<double> sorted(score.begin() + g * per_group,
                                 score.begin() + (g + 1) * per_group);
      std::sort(sorted.rbegin(), sorted.rend());
      group_score.push_back(sorted[0] + (per_group > 1 ? sorted[1] : 0));
    }
    std::vector<bool> group_open(c_.groups, true), open(c_.experts, false);
    for (int64_t i = 0; i < c_.topk_group; ++i) {
      const int64_t g = best(group_score, group_open);
      std::fill_n(open.begin() + g * per_group, per_group, true);
    }
    std::vector<int64_t> experts;
    for (int64_t j = 0; j < c_.top_k; ++j) experts.push_back(best(score, open));
    return experts;
  }
  void add_row(int64_t b, const Tensor& x) {
    const int64_t X = c_.experts, T = problem_.T, D = problem_.D;
    const double capacity = std::ceil(c_.capacity_factor * double(T * c_.top_k) / double(X));
    std::vector<double> taken(X, 0), mass(X, 0);
    double row_z = 0;
    for (int64_t t = 0; t < T; ++t) {
      std::vector<double> token(D);
      for (int64_t i = 0; i < D; ++i) token[i] = x.get((b * T + t) * D + i);
      const std::vector<double> logits = product(value("router.weight"), X, token);
      double sum = 0;
      for (const double logit : logits) sum += std::exp(logit);
      row_z += std::pow(std::log(sum), 2);
      std::vector<double> p(X);
      const bool softmax = c_.score == RouterScore::softmax;
      double all = 0;
      for (int64_t e = 0; e < X; ++e) {
        p[e] = softmax ? std::exp(logits[e]) / sum : 1 / (1 + std::exp(-logits[e]));
        all += p[e];
      }
      for (int64_t e = 0; e < X; ++e) mass[e] += p[e] / all;
      std::vector<int64_t> experts = choose(p);
      for (size_t j = 0; j < experts.size() && dictated_ != nullptr; ++j) {
        experts[j] = (*dictated_)[(b * T + t) * c_.top_k + j];
      }
      double divisor = 0;
      for (const int64_t e : experts) divisor += p[e];
      for (const int64_t e : experts) {
        const bool full = capacity > 0 && taken[e] >= capacity;
        ++taken[e];
        dropped += full;
        if (full) continue;
        const double weight = c_.scale * p[e] / (c_.renormalise ? divisor : 1);
        add_expert(e, weight, token, b * T + t);
      }
      if (c_.shared_hidden > 0) add_shared(token, b * T + t);
    }
    const double rows = double(problem_.B);
    for (int64_t e = 0; e < X; ++e) {
      counts[e] += taken[e];
      balance +=
          c_.aux_loss * double(X) * taken[e] / double(T * c_.top_k) * mass[e] / double(T) / rows;
    }
    z += c_.z_loss * row_z / double(T) / rows;
  }
  void add_expert(int64_t e, double weight, const std::vector<double>& token, int64_t at) {
    const int64_t F = c_.hidden, D = problem_.D;
    const bool gated = c_.activation == Activation::swiglu;
    const double* up = value(gated ? "experts.gate_up.weight" : "experts.up.weight");
    add(feed_forward(up + e * (gated ? 2 : 1) * F * D, value("experts.down.weight") + e * D * F, F,
                     token),
        weight, at);
  }
  void add_shared(const std::vector<double>& token, int64_t at) {
    const bool gated = c_.activation == Activation::swiglu;
    add(feed_forward(value(gated ? "shared.gate_up.weight" : "shared.up.weight"),
                     value("shared.down.weight"), c_.shared_hidden, token),
        1, at);
  }
  void add(const std::vector<double>& v, double weight, int64_t at) {
    for (size_t i = 0; i < v.size(); ++i) {
      const int64_t index = at * problem_.D + int64_t(i);
      y.set(index, y.get(index) + weight * v[i]);
    }
  }

  const MoeProblem& problem_;
  const MoeConfig& c_;
  const std::vector<int32_t>* dictated_;
  MoeOnRank rank_;
};

}  // namespace sluice::test
