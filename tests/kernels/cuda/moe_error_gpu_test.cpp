// The errors in bf16 of the router's probabilities, of rows to experts and back, and of experts.
// T tokens, k choices of a token, X experts, D model, F hidden width of an expert, U = 2F
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/grouped_ffn.h"
#include "kernels/token_permute/token_permute.h"
#include "kernels/topk_router/topk_router.h"
#include "tests/support/bf16_error.h"

namespace sluice::test {
namespace {

Matrix rows_of(const Matrix& m, int64_t begin, int64_t end) {
  return make(end - begin, m.columns, Rounding::none,
              [&](int64_t i, int64_t j) { return m.at(begin + i, j); });
}

// The choice is given, or an error of the probabilities could turn it: the expert of choice j of
// token t, all of a token different.
struct RouterShape {
  int64_t T = 1, D = 1, X = 1, k = 1;
  RouterScore score = RouterScore::softmax;
  bool renormalise = false;

  int64_t choice(int64_t t, int64_t j) const { return (t * t + 3 * t + j) % X; }
  std::vector<double> choices() const {
    std::vector<double> all;
    for (int64_t i = 0; i < T * k; ++i) all.push_back(double(choice(i / k, i % k)));
    return all;
  }
};
void PrintTo(const RouterShape& s, std::ostream* out) {
  *out << "X" << s.X << enum_names(s.score)[size_t(s.score)] << s.renormalise;
}

void run_router(Side& side, const RouterShape& s, Inputs& inputs) {
  const TensorView x = side.normal({1, s.T, s.D}), dweights = side.stat_normal({1, s.T, s.k});
  const TensorView router = side.stat_normal({s.X, s.D}, 1 / std::sqrt(double(s.D)));
  const TensorView logits = side.output("logits", {1, s.T, s.X}, side.stat());
  const TensorView experts = side.values({1, s.T, s.k}, DType::i32, s.choices());
  const TensorView dlogits = side.output("dlogits", logits.dims, side.stat());
  const RouterOptions options = {.score = s.score, .top_k = s.k, .renormalise = s.renormalise};
  gemm(side.ctx(), {.a = x.matrix(), .b = router, .c = logits.matrix(), .transpose_b = true});
  topk_router_forward(side.ctx(), {.logits = logits,
                                   .experts = experts,
                                   .weights = side.output("weights", experts.dims, side.stat()),
                                   .options = options,
                                   .chosen = true});
  topk_router_backward(side.ctx(), {.dweights = dweights,
                                    .logits = logits,
                                    .experts = experts,
                                    .dlogits = dlogits,
                                    .options = options});
  gemm(side.ctx(),
       {.a = dlogits.matrix(), .b = router, .c = side.output("dx", x.dims, side.dtype()).matrix()});
  gemm(side.ctx(), {.a = dlogits.matrix(),
                    .b = x.matrix(),
                    .c = side.output("drouter", router.dims, side.stat()),
                    .transpose_a = true});
  inputs = {{"x", x}, {"dweights", dweights}, {"router", router}};
}

// Everything in bf16, the router's matrix too.
Outputs straightforward_router(const RouterShape& s, const Values& inputs, Rounding rounding) {
  const auto rounded = [&](const Matrix& m) {
    return make(m.rows, m.columns, rounding, [&](int64_t i, int64_t j) { return m.at(i, j); });
  };
  const Matrix x = matrix(inputs.at("x"), s.D), router = rounded(matrix(inputs.at("router"), s.D));
  const Matrix dweights = rounded(matrix(inputs.at("dweights"), s.k));
  const Matrix logits = product(x, transposed(router), rounding);
  Matrix p(s.T, s.X), weights(s.T, s.k), dp(s.T, s.X), dlogits(s.T, s.X);
  for (int64_t t = 0; t < s.T; ++t) {
    const auto exponential = [&](int64_t e) { return std::exp(logits.at(t, e)); };
    double all = 0, chosen = 0, from_weights = 0, from_p = 0;
    for (int64_t e = 0; e < s.X; ++e) all += exponential(e);
    for (int64_t e = 0; e < s.X; ++e) {
      const bool softmax = s.score == RouterScore::softmax;
      p.at(t, e) = round_to(rounding,
                            softmax ? exponential(e) / all : exponential(e) / (1 + exponential(e)));
    }
    for (int64_t j = 0; j < s.k; ++j) chosen += p.at(t, s.choice(t, j));
    chosen = s.renormalise ? round_to(rounding, chosen) : 1;
    for (int64_t j = 0; j < s.k; ++j) {
      weights.at(t, j) = round_to(rounding, p.at(t, s.choice(t, j)) / chosen);
      if (s.renormalise) from_weights += dweights.at(t, j) * weights.at(t, j);
    }
    for (int64_t j = 0; j < s.k; ++j) {
      dp.at(t, s.choice(t, j)) = round_to(rounding, (dweights.at(t, j) - from_weights) / chosen);
    }
    for (int64_t e = 0; e < s.X; ++e) from_p += dp.at(t, e) * p.at(t, e);
    for (int64_t e = 0; e < s.X; ++e) {
      const double slope = s.score == RouterScore::softmax
                               ? p.at(t, e) * (dp.at(t, e) - from_p)
                               : p.at(t, e) * (1 - p.at(t, e)) * dp.at(t, e);
      dlogits.at(t, e) = round_to(rounding, slope);
    }
  }
  Outputs outputs;
  outputs.add("logits", 1, 0, logits, rounding);
  outputs.add("weights", 1, 0, weights, rounding);
  outputs.add("dlogits", 1, 0, dlogits, rounding);
  outputs.add("dx", 1, 0, product(dlogits, router, rounding), rounding);
  outputs.add("drouter", 1, 0, product(transposed(dlogits), x, rounding), rounding);
  return outputs;
}

class TopkRouterGpuError : public testing::TestWithParam<RouterShape> {};

TEST_P(TopkRouterGpuError, IsAtMostThatOfTheStraightforwardComputation) {
  check_errors(GetParam(), run_router, straightforward_router);
}
INSTANTIATE_TEST_SUITE_P(Shapes, TopkRouterGpuError,
                         testing::Values(RouterShape{200, 64, 16, 2},
                                         RouterShape{200, 64, 16, 2, {}, true},
                                         RouterShape{150, 33, 9, 3, RouterScore::sigmoid, true}));

struct PermuteShape {
  int64_t T = 1, k = 1, D = 1;

  // Where the row of choice j of token t is: all of a choice together, a token of seven dropped.
  int64_t slot(int64_t t, int64_t j) const {
    return (t + j) % 7 == 3 ? -1 : j * T + (t * 5 + 2) % T;
  }
};
void PrintTo(const PermuteShape& s, std::ostream* out) { *out << "D" << s.D; }

void run_permute(Side& side, const PermuteShape& s, Inputs& inputs) {
  const TensorView x = side.normal({1, s.T, s.D}), results = side.normal({s.T * s.k, s.D});
  const TensorView dy = side.normal(x.dims), drows = side.normal(results.dims);
  const TensorView weights = side.stat_normal({1, s.T, s.k}, 0.2, 0.5);
  std::vector<double> slots;
  for (int64_t i = 0; i < s.T * s.k; ++i) slots.push_back(double(s.slot(i / s.k, i % s.k)));
  const TensorView slot = side.values({1, s.T, s.k}, DType::i32, slots);
  const auto zeros = [&](const char* name) {
    const std::vector<double> all(results.numel());
    return side.compare(name, side.values(results.dims, side.dtype(), all));
  };
  token_permute_forward(side.ctx(), {.x = x, .slot = slot, .rows = zeros("rows")});
  token_unpermute_forward(side.ctx(), {.rows = results,
                                       .slot = slot,
                                       .weights = weights,
                                       .y = side.output("y", x.dims, side.dtype())});
  token_unpermute_backward(side.ctx(),
                           {.dy = dy,
                            .rows = results,
                            .slot = slot,
                            .weights = weights,
                            .drows = zeros("dresults"),
                            .dweights = side.output("dweights", weights.dims, side.stat())});
  token_permute_backward(
      side.ctx(), {.drows = drows, .slot = slot, .dx = side.output("dx", x.dims, side.dtype())});
  inputs = {{"x", x}, {"results", results}, {"dy", dy}, {"drows", drows}, {"weights", weights}};
}

// A choice after the other, with weights in bf16.
Outputs straightforward_permute(const PermuteShape& s, const Values& inputs, Rounding rounding) {
  const Matrix x = matrix(inputs.at("x"), s.D), results = matrix(inputs.at("results"), s.D);
  const Matrix dy = matrix(inputs.at("dy"), s.D), drows = matrix(inputs.at("drows"), s.D);
  Matrix rows(s.T * s.k, s.D), dresults(s.T * s.k, s.D), dweights(s.T, s.k);
  Outputs outputs;
  for (int64_t j = 0; j < s.k; ++j) {
    Matrix share(s.T, s.D), dx(s.T, s.D);
    for (int64_t t = 0; t < s.T; ++t) {
      const int64_t slot = s.slot(t, j);
      if (slot < 0) continue;
      const double weight = round_to(rounding, inputs.at("weights")[t * s.k + j]);
      for (int64_t d = 0; d < s.D; ++d) {
        rows.at(slot, d) = x.at(t, d);
        share.at(t, d) = round_to(rounding, weight * results.at(slot, d));
        dresults.at(slot, d) = weight * dy.at(t, d);
        dweights.at(t, j) += dy.at(t, d) * results.at(slot, d);
        dx.at(t, d) = drows.at(slot, d);
      }
    }
    outputs.add("y", 1, 0, share, rounding), outputs.add("dx", 1, 0, dx, rounding);
  }
  outputs.add("rows", 1, 0, rows, rounding), outputs.add("dresults", 1, 0, dresults, rounding);
  outputs.add("dweights", 1, 0, dweights, rounding);
  return outputs;
}

class TokenPermuteGpuError : public testing::TestWithParam<PermuteShape> {};

TEST_P(TokenPermuteGpuError, IsAtMostThatOfTheStraightforwardComputation) {
  check_errors(GetParam(), run_permute, straightforward_permute);
}
INSTANTIATE_TEST_SUITE_P(Shapes, TokenPermuteGpuError,
                         testing::Values(PermuteShape{101, 2, 64}, PermuteShape{101, 3, 33}));

struct ExpertShape {
  std::vector<int64_t> offsets;  // of the groups' rows
  int64_t D = 1, F = 1;

  int64_t X() const { return int64_t(offsets.size()) - 1; }
  int64_t rows() const { return offsets.back(); }
};
void PrintTo(const ExpertShape& s, std::ostream* out) { *out << "D" << s.D << "F" << s.F; }

void run_experts(Side& side, const ExpertShape& s, Inputs& inputs) {
  const int64_t X = s.X(), R = s.rows(), U = 2 * s.F;
  const TensorView rows = side.normal({R, s.D}), dout = side.normal({R, s.D});
  const TensorView W_up = side.normal({X, U, s.D}, 1 / std::sqrt(double(s.D)));
  const TensorView W_down = side.normal({X, s.D, s.F}, 1 / std::sqrt(double(s.F)));
  const TensorView offsets =
      side.values({X + 1}, DType::i64, std::vector<double>(s.offsets.begin(), s.offsets.end()));
  const TensorView up = side.output("up", {R, U}, side.dtype());
  const TensorView hidden = side.output("hidden", {R, s.F}, side.dtype());
  const TensorView again = side.output("hidden again", hidden.dims, side.dtype());
  const TensorView dup = side.output("dup", up.dims, side.dtype());
  grouped_up(side.ctx(),
             {.rows = rows, .weights = W_up, .offsets = offsets, .up = up, .hidden = hidden});
  grouped_gemm(side.ctx(), {.a = hidden,
                            .weights = W_down,
                            .c = side.output("out", rows.dims, side.dtype()),
                            .offsets = offsets,
                            .transpose_weights = true});
  grouped_down_backward(
      side.ctx(),
      {.dout = dout, .weights = W_down, .offsets = offsets, .up = up, .dup = dup, .hidden = again});
  const auto weight_gradient = [&](const char* name, const TensorView& a, const TensorView& b,
                                   const TensorView& of) {
    grouped_gemm_weight(side.ctx(), {.a = a,
                                     .b = b,
                                     .weights = side.output(name, of.dims, side.stat()),
                                     .offsets = offsets,
                                     .beta = 0});
  };
  weight_gradient("dW_down", dout, again, W_down);
  weight_gradient("dW_up", dup, rows, W_up);
  grouped_gemm(side.ctx(), {.a = dup,
                            .weights = W_up,
                            .c = side.output("drows", rows.dims, side.dtype()),
                            .offsets = offsets});
  inputs = {{"rows", rows}, {"dout", dout}, {"W_up", W_up}, {"W_down", W_down}};
}

// Of rows below each other.
void append(Outputs& outputs, const std::string& name, const Matrix& m) {
  std::vector<double>& all = outputs.of[name];
  all.insert(all.end(), m.all.begin(), m.all.end());
}

// One expert: silu of the gate, times what is gated, each rounded, and so back.
void straightforward_expert(Outputs& outputs, const Matrix& rows, const Matrix& dout,
                            const Matrix& W_up, const Matrix& W_down, Rounding rounding) {
  const int64_t R = rows.rows, F = W_down.columns;
  const Matrix up = product(rows, transposed(W_up), rounding);
  const auto sigmoid = [&](int64_t i, int64_t j) { return 1 / (1 + std::exp(-up.at(i, j))); };
  const Matrix silu =
      make(R, F, rounding, [&](int64_t i, int64_t j) { return up.at(i, j) * sigmoid(i, j); });
  const Matrix hidden =
      make(R, F, rounding, [&](int64_t i, int64_t j) { return silu.at(i, j) * up.at(i, F + j); });
  const Matrix dhidden = product(dout, W_down, rounding);
  const Matrix dsilu = make(
      R, F, rounding, [&](int64_t i, int64_t j) { return dhidden.at(i, j) * up.at(i, F + j); });
  const Matrix dup = make(R, 2 * F, rounding, [&](int64_t i, int64_t j) {
    if (j >= F) return dhidden.at(i, j - F) * silu.at(i, j - F);
    const double s = sigmoid(i, j);
    return dsilu.at(i, j) * s * (1 + up.at(i, j) * (1 - s));
  });
  append(outputs, "up", up);
  append(outputs, "hidden", hidden), append(outputs, "hidden again", hidden);
  append(outputs, "out", product(hidden, transposed(W_down), rounding));
  append(outputs, "dup", dup);
  append(outputs, "dW_down", product(transposed(dout), hidden, rounding));
  append(outputs, "dW_up", product(transposed(dup), rows, rounding));
  append(outputs, "drows", product(dup, W_up, rounding));
}

Outputs straightforward_experts(const ExpertShape& s, const Values& inputs, Rounding rounding) {
  const Matrix rows = matrix(inputs.at("rows"), s.D), dout = matrix(inputs.at("dout"), s.D);
  const Matrix W_up = matrix(inputs.at("W_up"), s.D), W_down = matrix(inputs.at("W_down"), s.F);
  Outputs outputs;
  for (int64_t e = 0; e < s.X(); ++e) {
    const int64_t begin = s.offsets[e], end = s.offsets[e + 1];
    straightforward_expert(outputs, rows_of(rows, begin, end), rows_of(dout, begin, end),
                           rows_of(W_up, e * 2 * s.F, (e + 1) * 2 * s.F),
                           rows_of(W_down, e * s.D, (e + 1) * s.D), rounding);
  }
  return outputs;
}

class ExpertsGpuError : public testing::TestWithParam<ExpertShape> {};

TEST_P(ExpertsGpuError, IsAtMostThatOfTheStraightforwardComputation) {
  check_errors(GetParam(), run_experts, straightforward_experts);
}
// On tensor cores, and by the plain kernels.
INSTANTIATE_TEST_SUITE_P(Shapes, ExpertsGpuError,
                         testing::Values(ExpertShape{{0, 130, 130, 200}, 64, 136},
                                         ExpertShape{{0, 37, 60}, 33, 45}));

}  // namespace
}  // namespace sluice::test
