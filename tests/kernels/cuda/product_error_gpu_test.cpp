// The errors of products, of the head with its loss, and of the embedding's gradient in bf16.
#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/gemm/gemm.h"
#include "kernels/linear_xent/linear_xent.h"
#include "tests/support/bf16_error.h"

namespace sluice::test {
namespace {

struct ProductShape {
  int64_t m = 1, n = 1, k = 1;
  bool transpose_a = false, transpose_b = false;
};
void PrintTo(const ProductShape& s, std::ostream* out) {
  *out << s.m << "x" << s.n << "x" << s.k << (s.transpose_a ? " A^T" : "")
       << (s.transpose_b ? " B^T" : "");
}

// Alone, added to what is there, and in f32.
void run_products(Side& side, const ProductShape& s, Inputs& inputs) {
  const TensorView a = side.normal(s.transpose_a ? Dims{s.k, s.m} : Dims{s.m, s.k});
  const TensorView b = side.normal(s.transpose_b ? Dims{s.n, s.k} : Dims{s.k, s.n});
  const TensorView before = side.normal({s.m, s.n}, std::sqrt(double(s.k)));
  const TensorView sum = side.output("sum", before.dims, side.dtype());
  copy(side.ctx(), before, sum);
  const auto multiply = [&](const TensorView& c, double beta) {
    gemm(side.ctx(), {.a = a,
                      .b = b,
                      .c = c,
                      .transpose_a = s.transpose_a,
                      .transpose_b = s.transpose_b,
                      .beta = beta});
  };
  multiply(side.output("c", before.dims, side.dtype()), 0);
  multiply(side.output("c in f32", before.dims, side.stat()), 0);
  multiply(sum, 1);
  inputs = {{"a", a}, {"b", b}, {"before", before}};
}

Outputs straightforward_products(const ProductShape& s, const Values& inputs, Rounding rounding) {
  const Matrix a = matrix(inputs.at("a"), s.transpose_a ? s.m : s.k);
  const Matrix b = matrix(inputs.at("b"), s.transpose_b ? s.k : s.n);
  const Matrix c =
      product(s.transpose_a ? transposed(a) : a, s.transpose_b ? transposed(b) : b, rounding);
  Outputs outputs;
  outputs.add("c", 1, 0, c, rounding);
  outputs.add("c in f32", 1, 0, c, rounding);
  outputs.add("sum", 1, 0, matrix(inputs.at("before"), s.n), rounding);
  outputs.add("sum", 1, 0, c, rounding);
  return outputs;
}

class GemmGpuError : public testing::TestWithParam<ProductShape> {};

TEST_P(GemmGpuError, IsAtMostThatOfTheStraightforwardComputation) {
  check_errors(GetParam(), run_products, straightforward_products);
}

// Rows of whole 16 bytes, and others.
INSTANTIATE_TEST_SUITE_P(
    Shapes, GemmGpuError,
    testing::Values(ProductShape{128, 136, 512}, ProductShape{128, 136, 512, false, true},
                    ProductShape{128, 136, 512, true, false},
                    ProductShape{128, 136, 512, true, true}, ProductShape{77, 85, 301},
                    ProductShape{77, 85, 301, false, true}, ProductShape{77, 85, 301, true, false},
                    ProductShape{77, 85, 301, true, true}));

struct HeadShape {
  int64_t T = 1, D = 1, V = 1;
};
void PrintTo(const HeadShape& s, std::ostream* out) { *out << "V" << s.V; }

int64_t target_of(const HeadShape& s, int64_t t) { return t % 7 == 3 ? -1 : (t * 7919 + 13) % s.V; }
constexpr double kLossScale = 1.0 / 128;

void run_head(Side& side, const HeadShape& s, Inputs& inputs) {
  const TensorView hidden = side.normal({1, s.T, s.D});
  const TensorView weight = side.normal({s.V, s.D}, 2 / std::sqrt(double(s.D)));
  std::vector<double> targets;
  for (int64_t t = 0; t < s.T; ++t) targets.push_back(double(target_of(s, t)));
  const std::vector<double> zeros(s.V * s.D);
  linear_xent_forward_backward(
      side.ctx(), {.hidden = hidden,
                   .weight = weight,
                   .targets = side.values({1, s.T}, DType::i32, targets),
                   .losses = side.output("losses", {1, s.T}, side.stat()),
                   .loss_sum = side.nothing({1}, DType::f64),
                   .dhidden = side.output("dhidden", hidden.dims, side.dtype()),
                   .dweight = side.compare("dweight", side.values({s.V, s.D}, side.stat(), zeros)),
                   .loss_scale = kLossScale});
  inputs = {{"hidden", hidden}, {"weight", weight}};
}

Outputs straightforward_head(const HeadShape& s, const Values& inputs, Rounding rounding) {
  const Matrix hidden = matrix(inputs.at("hidden"), s.D), weight = matrix(inputs.at("weight"), s.D);
  const Matrix logits = product(hidden, transposed(weight), rounding);
  Matrix losses(s.T, 1), probabilities(s.T, s.V);
  for (int64_t t = 0; t < s.T; ++t) {
    double sum = 0;
    for (int64_t v = 0; v < s.V; ++v) sum += std::exp(logits.at(t, v));
    for (int64_t v = 0; v < s.V; ++v)
      probabilities.at(t, v) = round_to(rounding, std::exp(logits.at(t, v)) / sum);
    const int64_t target = target_of(s, t);
    if (target >= 0) losses.at(t, 0) = std::log(sum) - logits.at(t, target);
  }
  const Matrix dlogits = make(s.T, s.V, rounding, [&](int64_t t, int64_t v) {
    const int64_t target = target_of(s, t);
    return target < 0 ? 0 : kLossScale * (probabilities.at(t, v) - (v == target ? 1 : 0));
  });
  Outputs outputs;
  outputs.add("losses", 1, 0, losses, rounding);
  outputs.add("dhidden", 1, 0, product(dlogits, weight, rounding), rounding);
  outputs.add("dweight", 1, 0, product(transposed(dlogits), hidden, rounding), rounding);
  return outputs;
}

class LinearXentGpuError : public testing::TestWithParam<HeadShape> {};

TEST_P(LinearXentGpuError, IsAtMostThatOfTheStraightforwardComputation) {
  check_errors(GetParam(), run_head, straightforward_head);
}
INSTANTIATE_TEST_SUITE_P(Shapes, LinearXentGpuError,
                         testing::Values(HeadShape{96, 128, 512}, HeadShape{96, 128, 507},
                                         HeadShape{96, 67, 501}));

struct TableShape {
  int64_t T = 1, D = 1, V = 1;
};
void PrintTo(const TableShape& s, std::ostream* out) { *out << "D" << s.D; }

// Some words often, most of them never.
int64_t word_of(const TableShape& s, int64_t t) { return t * t % 11 % s.V; }

void run_embedding(Side& side, const TableShape& s, Inputs& inputs) {
  const TensorView dy = side.normal({1, s.T, s.D});
  std::vector<double> tokens;
  for (int64_t t = 0; t < s.T; ++t) tokens.push_back(double(word_of(s, t)));
  const std::vector<double> zeros(s.V * s.D);
  embedding_backward(side.ctx(), {.tokens = side.values({1, s.T}, DType::i32, tokens),
                                  .dy = dy,
                                  .dweight = side.compare(
                                      "dweight", side.values({s.V, s.D}, side.stat(), zeros))});
  inputs = {{"dy", dy}};
}

// Sums in f32, a table in bf16.
Outputs straightforward_embedding(const TableShape& s, const Values& inputs, Rounding rounding) {
  const Matrix dy = matrix(inputs.at("dy"), s.D);
  Matrix sums(s.V, s.D);
  for (int64_t t = 0; t < s.T; ++t) {
    for (int64_t j = 0; j < s.D; ++j) sums.at(word_of(s, t), j) += dy.at(t, j);
  }
  Outputs outputs;
  outputs.add("dweight", 1, 0, sums, rounding);
  return outputs;
}

class EmbeddingGpuError : public testing::TestWithParam<TableShape> {};

TEST_P(EmbeddingGpuError, IsAtMostThatOfTheStraightforwardComputation) {
  check_errors(GetParam(), run_embedding, straightforward_embedding);
}
INSTANTIATE_TEST_SUITE_P(Shapes, EmbeddingGpuError,
                         testing::Values(TableShape{300, 64, 40}, TableShape{300, 33, 9}));

}  // namespace
}  // namespace sluice::test
