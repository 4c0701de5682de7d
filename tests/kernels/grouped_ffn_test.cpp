#include "kernels/gemm/grouped_ffn.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/gemm/gemm.h"
#include "tests/support/gradcheck.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

constexpr int64_t X = 3, D = 5, F = 4, kRows = 8;

int64_t width_of(Activation kind) { return kind == Activation::swiglu ? 2 * F : F; }

// The second expert has no rows.
Tensor offsets() { return Tensor({X + 1}, DType::i64).fill({0, 2, 2, kRows}).clone(); }

TEST(GroupedFfn, IsTheLoopOverRows) {
  TestContext ctx;
  const Tensor rows = normal({kRows, D}, DType::f64, 1);
  const Tensor weights = normal({X, 2 * F, D}, DType::f64, 2);
  Tensor up({kRows, 2 * F}, DType::f64), hidden({kRows, F}, DType::f64);
  grouped_up(ctx,
             {.rows = rows, .weights = weights, .offsets = offsets(), .up = up, .hidden = hidden});
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t expert = row < 2 ? 0 : 2;
    const auto product = [&](int64_t f) {
      double sum = 0;
      for (int64_t i = 0; i < D; ++i)
        sum += rows.get(row * D + i) * weights.get((expert * 2 * F + f) * D + i);
      return sum;
    };
    for (int64_t f = 0; f < F; ++f) {
      const double gate = product(f), gated = product(F + f);
      EXPECT_NEAR(up.get(row * 2 * F + f), gate, 1e-12);
      EXPECT_NEAR(up.get(row * 2 * F + F + f), gated, 1e-12);
      EXPECT_NEAR(hidden.get(row * F + f), gate / (1 + std::exp(-gate)) * gated, 1e-12);
    }
  }
}

// out = activation(up) W_down^T, weighted by dout, against the gradient of up.
TEST(GroupedFfn, BackwardIsTheDerivative) {
  TestContext ctx;
  for (const Activation kind : {Activation::swiglu, Activation::relu2, Activation::gelu}) {
    const int64_t U = width_of(kind);
    Tensor up = normal({kRows, U}, DType::f64, 1);
    const Tensor weights = normal({X, D, F}, DType::f64, 2),
                 dout = normal({kRows, D}, DType::f64, 3);
    Tensor dup({kRows, U}, DType::f64), again({kRows, F}, DType::f64);
    grouped_down_backward(ctx, {.kind = kind,
                                .dout = dout,
                                .weights = weights,
                                .offsets = offsets(),
                                .up = up,
                                .dup = dup,
                                .hidden = again});
    Tensor hidden({kRows, F}, DType::f64), out({kRows, D}, DType::f64);
    const auto loss = [&] {
      activation_forward(ctx, {.kind = kind,
                               .x = up.view().columns(0, {F}),
                               .up = U == F ? ConstTensorView{} : up.view().columns(F, {F}),
                               .y = hidden});
      grouped_gemm(ctx, {.a = hidden,
                         .weights = weights,
                         .c = out,
                         .offsets = offsets(),
                         .transpose_weights = true});
      return weighted_sum({&out}, {&dout});
    };
    check_gradients(loss, {{"up", &up, &dup}});
    loss();
    EXPECT_EQ(again.values(), hidden.values());
  }
}

// Without offsets: all rows are one expert's.
TEST(GroupedFfn, IsDenseWithoutOffsets) {
  TestContext ctx;
  for (const Activation kind : {Activation::swiglu, Activation::relu2}) {
    const int64_t U = width_of(kind);
    const Tensor rows = normal({kRows, D}, DType::f64, 1),
                 weights = normal({1, U, D}, DType::f64, 2),
                 down = normal({1, D, F}, DType::f64, 3);
    const Tensor all = Tensor({2}, DType::i64).fill({0, kRows}).clone();
    const auto there_and_back = [&](const ConstTensorView& offsets) {
      Tensor up({kRows, U}, DType::f64), hidden({kRows, F}, DType::f64);
      Tensor dup({kRows, U}, DType::f64), again({kRows, F}, DType::f64);
      grouped_up(ctx, {.kind = kind,
                       .rows = rows,
                       .weights = weights,
                       .offsets = offsets,
                       .up = up,
                       .hidden = hidden});
      grouped_down_backward(ctx, {.kind = kind,
                                  .dout = rows,
                                  .weights = down,
                                  .offsets = offsets,
                                  .up = up,
                                  .dup = dup,
                                  .hidden = again});
      return std::vector{up.values(), hidden.values(), dup.values(), again.values()};
    };
    const auto dense = there_and_back({}), grouped = there_and_back(all);
    for (size_t i = 0; i < dense.size(); ++i) {
      ASSERT_EQ(dense[i].size(), grouped[i].size());
      for (size_t j = 0; j < dense[i].size(); ++j) EXPECT_NEAR(dense[i][j], grouped[i][j], 1e-12);
    }
  }
}

TEST(GroupedFfn, RefusesWrongShapes) {
  TestContext ctx;
  const Tensor rows = normal({kRows, D}, DType::f64, 1), up = normal({kRows, 2 * F}, DType::f64, 1);
  const Tensor hidden({kRows, F}, DType::f64);
  const Tensor of_one_part = normal({X, F, D}, DType::f64, 2);
  EXPECT_THROW(
      grouped_up(
          ctx,
          {.rows = rows, .weights = of_one_part, .offsets = offsets(), .up = up, .hidden = hidden}),
      Error);
  EXPECT_THROW(grouped_down_backward(ctx, {.kind = Activation::relu2,
                                           .dout = rows,
                                           .weights = normal({X, D, F}, DType::f64, 2),
                                           .offsets = offsets(),
                                           .up = up,
                                           .dup = up,
                                           .hidden = hidden}),
               Error);
  EXPECT_THROW(grouped_up(ctx, {.rows = rows,
                                .weights = normal({X, 2 * F, D}, DType::f64, 2),
                                .up = up,
                                .hidden = hidden}),
               Error);  // one expert's alone
}

}  // namespace
}  // namespace sluice::test
