#include "kernels/topk_router/topk_router_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/row_blocks.h"

namespace sluice::cpu {
namespace {

constexpr double kTinySum = 1e-20;  // beside a sum of sigmoids that may all be 0

// p = softmax(logits); returns their logsumexp.
template <class T>
T softmax(const T* logits, int64_t X, T* p) {
  T largest = -std::numeric_limits<T>::infinity();
  for (int64_t e = 0; e < X; ++e) largest = std::max(largest, logits[e]);
  T sum = 0;
  for (int64_t e = 0; e < X; ++e) sum += p[e] = std::exp(logits[e] - largest);
  for (int64_t e = 0; e < X; ++e) p[e] /= sum;
  return largest + std::log(sum);
}

template <class T>
void scores(RouterScore score, const T* logits, int64_t X, T* p) {
  switch (score) {
    case RouterScore::softmax:
      softmax(logits, X, p);
      return;
    case RouterScore::sigmoid:
      for (int64_t e = 0; e < X; ++e) p[e] = 1 / (1 + std::exp(-logits[e]));
      return;
  }
}

// What the weights are divided by.
template <class T>
T divisor(const RouterOptions& options, const T* p, const int32_t* experts) {
  if (!options.renormalise) return 1;
  T sum = options.score == RouterScore::sigmoid ? T(kTinySum) : T(0);
  for (int64_t j = 0; j < options.top_k; ++j) sum += p[experts[j]];
  return sum;
}

// Index of the largest of the `open` entries of `values`, the first of equals. NaN is never larger,
// but some open entry is always taken.
template <class T>
int64_t take_largest(const std::vector<T>& values, std::vector<char>& open) {
  int64_t best = -1;
  for (int64_t i = 0; i < int64_t(values.size()); ++i) {
    if (open[i] && (best < 0 || values[i] > values[best])) best = i;
  }
  open[best] = false;
  return best;
}

// The choice of one token; the buffers are reused from token to token.
template <class T>
class Chooser {
 public:
  Chooser(const RouterOptions& options, int64_t X)
      : options_(options),
        group_size_(X / options.num_groups),
        choice_(X),
        open_(X),
        group_score_(options.num_groups),
        group_open_(options.num_groups) {}

  void choose(const T* p, const T* bias, int32_t* experts) {
    for (size_t e = 0; e < choice_.size(); ++e)
      choice_[e] = bias == nullptr ? p[e] : p[e] + bias[e];
    open_groups();
    for (int64_t j = 0; j < options_.top_k; ++j) experts[j] = int32_t(take_largest(choice_, open_));
  }

 private:
  void open_groups() {
    const bool all = options_.topk_group == options_.num_groups;
    std::fill(open_.begin(), open_.end(), all);
    if (all) return;
    for (int64_t group = 0; group < options_.num_groups; ++group) {
      T first = -std::numeric_limits<T>::infinity();
      T second = group_size_ > 1 ? first : T(0);
      for (int64_t e = group * group_size_; e < (group + 1) * group_size_; ++e) {
        second = std::max(second, std::min(first, choice_[e]));
        first = std::max(first, choice_[e]);
      }
      group_score_[group] = first + second;
    }
    std::fill(group_open_.begin(), group_open_.end(), true);
    for (int64_t i = 0; i < options_.topk_group; ++i) {
      const int64_t group = take_largest(group_score_, group_open_);
      std::fill_n(open_.begin() + group * group_size_, group_size_, true);
    }
  }

  const RouterOptions options_;
  const int64_t group_size_;
  std::vector<T> choice_;  // p + bias
  std::vector<char> open_;
  std::vector<T> group_score_;
  std::vector<char> group_open_;
};

// From dL/dp of a token to its dlogits, which are added to.
template <class T>
void add_score_gradient(RouterScore score, const T* p, const T* dp, int64_t X, T* dlogits) {
  switch (score) {
    case RouterScore::softmax: {
      T mean = 0;
      for (int64_t e = 0; e < X; ++e) mean += p[e] * dp[e];
      for (int64_t e = 0; e < X; ++e) dlogits[e] += p[e] * (dp[e] - mean);
      return;
    }
    case RouterScore::sigmoid:
      for (int64_t e = 0; e < X; ++e) dlogits[e] += dp[e] * p[e] * (1 - p[e]);
      return;
  }
}

// q of the balance loss from the scores p, in place; returns what they were divided by.
template <class T>
T to_shares(RouterScore score, int64_t X, T* p) {
  if (score == RouterScore::softmax) return 1;
  T sum = T(kTinySum);
  for (int64_t e = 0; e < X; ++e) sum += p[e];
  for (int64_t e = 0; e < X; ++e) p[e] /= sum;
  return sum;
}

}  // namespace

template <class T>
void topk_router_forward(const TopkRouterForward& args) {
  const RouterOptions options = args.options;
  const int64_t tokens = args.logits.rows();
  const int64_t X = args.logits.row_size();
  const T* const bias = args.bias ? args.bias.as<T>() : nullptr;
#pragma omp parallel
  {
    Chooser<T> chooser(options, X);
    std::vector<T> p(X);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      int32_t* const experts = args.experts.row<int32_t>(t);
      T* const weights = args.weights.row<T>(t);
      scores(options.score, args.logits.row<T>(t), X, p.data());
      if (!args.chosen) chooser.choose(p.data(), bias, experts);
      const T factor = T(options.scale) / divisor(options, p.data(), experts);
      for (int64_t j = 0; j < options.top_k; ++j) weights[j] = p[experts[j]] * factor;
    }
  }
}

template <class T>
void topk_router_backward(const TopkRouterBackward& args) {
  const RouterOptions options = args.options;
  const int64_t tokens = args.logits.rows();
  const int64_t X = args.logits.row_size();
  const int64_t k = options.top_k;
#pragma omp parallel
  {
    std::vector<T> p(X), dp(X);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      const int32_t* const experts = args.experts.row<int32_t>(t);
      const T* const dweights = args.dweights.row<T>(t);
      scores(options.score, args.logits.row<T>(t), X, p.data());
      const T sum = divisor(options, p.data(), experts);
      T mean = 0;  // what the weights owe to their common divisor
      if (options.renormalise) {
        for (int64_t j = 0; j < k; ++j) mean += dweights[j] * p[experts[j]] / sum;
      }
      std::fill(dp.begin(), dp.end(), T(0));
      for (int64_t j = 0; j < k; ++j) {
        dp[experts[j]] = T(options.scale) * (dweights[j] - mean) / sum;
      }
      T* const dlogits = args.dlogits.row<T>(t);
      std::fill_n(dlogits, X, T(0));
      add_score_gradient(options.score, p.data(), dp.data(), X, dlogits);
    }
  }
}

template <class T>
void router_statistics(const RouterStatistics& args, TensorView partial) {
  const RouterOptions options = args.options;
  const int64_t B = args.logits.dim(0), tokens = args.logits.dim(1), X = args.logits.dim(2);
  const RowBlocks blocks(tokens);
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t block = 0; block < blocks.count; ++block) {
      double* const counts = partial.row<double>(b * blocks.count + block);
      double* const mass = counts + X;
      double& z = mass[X];
      std::fill_n(counts, 2 * X + 1, 0.0);
      std::vector<T> q(X);
      for (int64_t t = b * tokens + blocks.begin(block); t < b * tokens + blocks.end(block); ++t) {
        const double lse = softmax(args.logits.row<T>(t), X, q.data());
        z += lse * lse;
        if (options.score != RouterScore::softmax) {
          scores(options.score, args.logits.row<T>(t), X, q.data());
          to_shares(options.score, X, q.data());
        }
        for (int64_t e = 0; e < X; ++e) mass[e] += q[e];
        for (int64_t j = 0; j < options.top_k; ++j) counts[args.experts.row<int32_t>(t)[j]] += 1;
      }
    }
  }
  for (int64_t b = 0; b < B; ++b) {
    std::vector<double> sums(2 * X + 1, 0.0);
    for (int64_t block = 0; block < blocks.count; ++block) {
      const double* const part = partial.row<double>(b * blocks.count + block);
      for (int64_t i = 0; i < 2 * X + 1; ++i) sums[i] += part[i];
    }
    for (int64_t e = 0; e < X; ++e) args.counts.row<T>(b)[e] = T(sums[e]);
    for (int64_t e = 0; e < X; ++e) args.mass.row<T>(b)[e] = T(sums[X + e]);
    args.z.as<T>()[b] = T(sums[2 * X]);
  }
}

template <class T>
void router_loss_backward(const RouterLossBackward& args) {
  const RouterOptions options = args.options;
  const int64_t rows = args.logits.rows(), tokens = args.logits.dim(1), X = args.logits.dim(2);
  const double row_tokens = double(args.row_tokens);
  // L = sum over t, e of unit * counts_e q[t,e], plus the z part.
  const T unit = T(args.balance_scale * X / (row_tokens * row_tokens * options.top_k));
  const T z_unit = T(2 * args.z_scale / row_tokens);
#pragma omp parallel
  {
    std::vector<T> p(X), dp(X), share(X);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < rows; ++t) {
      const T* const logits = args.logits.row<T>(t);
      const T* const counts = args.counts.row<T>(t / tokens);
      T* const dlogits = args.dlogits.row<T>(t);
      const T lse = softmax(logits, X, share.data());
      for (int64_t e = 0; e < X; ++e) dlogits[e] += z_unit * lse * share[e];

      scores(options.score, logits, X, p.data());
      share = p;
      const T sum = to_shares(options.score, X, share.data());
      T mean = 0;  // through the divisor of q, which softmax's own gradient already has
      if (options.score == RouterScore::sigmoid) {
        for (int64_t e = 0; e < X; ++e) mean += unit * counts[e] * share[e];
      }
      for (int64_t e = 0; e < X; ++e) dp[e] = (unit * counts[e] - mean) / sum;
      add_score_gradient(options.score, p.data(), dp.data(), X, dlogits);
    }
  }
}

template <class T>
void router_report(const RouterReport& args) {
  const int64_t B = args.counts.dim(0), X = args.counts.dim(1);
  const double tokens = double(args.row_tokens);
  double* const losses = args.losses.as<double>();
  double* const loads = args.loads ? args.loads.as<double>() : nullptr;
  for (int64_t b = 0; b < B; ++b) {
    const T* const counts = args.counts.row<T>(b);
    const T* const mass = args.mass.row<T>(b);
    double balance = 0;
    for (int64_t e = 0; e < X; ++e) {
      if (loads != nullptr) loads[e] += double(args.counts_here.row<T>(b)[e]);
      balance += double(counts[e]) * double(mass[e]);
    }
    balance *= double(X) / (tokens * tokens * double(args.top_k));
    losses[0] += args.balance_scale * balance;
    losses[1] += args.z_scale * double(args.z.as<T>()[b]) / tokens;
  }
}

template void topk_router_forward<float>(const TopkRouterForward&);
template void topk_router_forward<double>(const TopkRouterForward&);
template void topk_router_backward<float>(const TopkRouterBackward&);
template void topk_router_backward<double>(const TopkRouterBackward&);
template void router_statistics<float>(const RouterStatistics&, TensorView);
template void router_statistics<double>(const RouterStatistics&, TensorView);
template void router_report<float>(const RouterReport&);
template void router_report<double>(const RouterReport&);
template void router_loss_backward<float>(const RouterLossBackward&);
template void router_loss_backward<double>(const RouterLossBackward&);

}  // namespace sluice::cpu
