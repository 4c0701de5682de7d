#include "kernels/attention/attention.h"

#include <gtest/gtest.h>
#include <omp.h>

#include "tests/support/gradcheck.h"

namespace sluice::test {
namespace {

struct AttentionShape {
  const char* name = "";
  int64_t B = 1, T = 1, S = 0, Hq = 1, Hkv = 1, hd = 1;  // S = 0: as many keys as queries see
  int64_t query_begin = 0, window = 0;
  std::vector<std::vector<int64_t>> starts = {};
  int64_t first = 0;
  double scale = 0;
};

struct Case {
  Case(const AttentionShape& shape, DType dtype)
      : shape(shape),
        S(shape.S > 0 ? shape.S : shape.T + shape.query_begin),
        doc_begin(documents(shape.B, shape.T, shape.starts, shape.first)),
        q({shape.B, shape.T, shape.Hq, shape.hd}, dtype, 3),
        k({shape.B, S, shape.Hkv, shape.hd}, dtype, 1),
        v({shape.B, S, shape.Hkv, shape.hd}, dtype, 2),
        y(q.dims(), dtype, 4),
        lse({shape.B, shape.T, shape.Hq}, dtype),
        dy(q.dims(), dtype, 1),
        dq(q.dims(), dtype, 3),
        dk(k.dims(), dtype, 1),
        dv(v.dims(), dtype, 2) {
    q.fill_normal(1), k.fill_normal(2), v.fill_normal(3), dy.fill_normal(4);
  }
  void forward() {
    attention_forward(ctx, {.q = q,
                            .k = k,
                            .v = v,
                            .doc_begin = doc_begin,
                            .y = y,
                            .lse = lse,
                            .query_begin = shape.query_begin,
                            .window = shape.window,
                            .scale = shape.scale});
  }
  void backward() {
    attention_backward(ctx, {.dy = dy,
                             .q = q,
                             .k = k,
                             .v = v,
                             .doc_begin = doc_begin,
                             .y = y,
                             .lse = lse,
                             .dq = dq,
                             .dk = dk,
                             .dv = dv,
                             .query_begin = shape.query_begin,
                             .window = shape.window,
                             .scale = shape.scale});
  }
  TestContext ctx;
  AttentionShape shape;
  int64_t S;
  Tensor doc_begin, q, k, v, y, lse, dy, dq, dk, dv;
};

// Whole rows of scores, one query at a time.
struct Naive {
  Tensor y, lse;
};
Naive naive(const Case& c) {
  const AttentionShape& a = c.shape;
  Naive out{Tensor(c.y.dims(), DType::f64), Tensor(c.lse.dims(), DType::f64)};
  const double scale = a.scale != 0 ? a.scale : 1 / std::sqrt(double(a.hd));
  for (int64_t row = 0; row < a.B * a.T * a.Hq; ++row) {
    const int64_t h = row % a.Hq, t = row / a.Hq % a.T, b = row / a.Hq / a.T;
    std::vector<double> weight(c.S, 0), sum(a.hd, 0);
    double total = 0;
    const auto key = [&](int64_t s) { return ((b * c.S + s) * a.Hkv + h * a.Hkv / a.Hq) * a.hd; };
    for (int64_t s = 0; s <= t + a.query_begin; ++s) {
      if (s < c.doc_begin.get(b * a.T + t) + a.query_begin) continue;
      if (a.window > 0 && s <= t + a.query_begin - a.window) continue;
      double score = 0;
      for (int64_t i = 0; i < a.hd; ++i) score += c.q.get(row * a.hd + i) * c.k.get(key(s) + i);
      weight[s] = std::exp(scale * score);
      total += weight[s];
      for (int64_t i = 0; i < a.hd; ++i) sum[i] += weight[s] * c.v.get(key(s) + i);
    }
    for (int64_t i = 0; i < a.hd; ++i) out.y.set(row * a.hd + i, sum[i] / total);
    out.lse.set(row, std::log(total));
  }
  return out;
}

TEST(Attention, HandComputed) {
  // Keys 0 and log 3 against query 1: weights 1/4 and 3/4.
  Case c({.T = 2}, DType::f64);
  c.q.fill({5, 1}), c.k.fill({0, std::log(3)}), c.v.fill({8, 16});
  c.forward();
  EXPECT_NEAR(c.y.get(0), 8, 1e-14);
  EXPECT_NEAR(c.y.get(1), 14, 1e-14);
  EXPECT_NEAR(c.lse.get(1), std::log(4), 1e-14);
}

std::vector<AttentionShape> attention_shapes() {
  return {
      {.name = "one_token"},
      {.name = "one_token_of_many_keys", .B = 2, .Hq = 4, .Hkv = 2, .hd = 8, .query_begin = 70},
      {.name = "primes", .B = 2, .T = 13, .Hq = 3, .Hkv = 1, .hd = 7},
      {.name = "head_dim_64", .T = 17, .Hq = 2, .Hkv = 2, .hd = 64},
      {.name = "several_tiles", .T = 131, .Hq = 4, .Hkv = 2, .hd = 8},
      {.name = "exact_tiles", .T = 128, .Hq = 1, .Hkv = 1, .hd = 4},
      {.name = "window_of_one", .T = 9, .Hq = 2, .Hkv = 1, .hd = 3, .window = 1},
      {.name = "window", .T = 150, .Hq = 2, .Hkv = 1, .hd = 3, .window = 70},
      {.name = "small_window", .T = 140, .Hq = 1, .hd = 2, .window = 5},
      {.name = "documents",
       .B = 2,
       .T = 140,
       .Hq = 2,
       .Hkv = 1,
       .hd = 5,
       .starts = {{0, 1, 2, 64, 100, 139}, {63, 65, 128}},
       .first = -3},
      {.name = "documents_and_window",
       .T = 90,
       .Hq = 2,
       .hd = 4,
       .window = 20,
       .starts = {{10, 64, 70}}},
      {.name = "later_queries",
       .T = 70,
       .Hq = 4,
       .Hkv = 2,
       .hd = 4,
       .query_begin = 67,
       .starts = {{20}},
       .first = -50},
      {.name = "keys_nobody_sees",
       .T = 5,
       .S = 150,
       .Hq = 2,
       .hd = 3,
       .query_begin = 70,
       .window = 30,
       .first = -1000},
      {.name = "own_scale", .T = 11, .Hq = 1, .hd = 4, .scale = 0.2},
  };
}

class AttentionShapes : public testing::TestWithParam<AttentionShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionShapes, testing::ValuesIn(attention_shapes()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(AttentionShapes, EqualsWholeRowsOfScores) {
  Case c(GetParam(), DType::f64);
  c.forward();
  const Naive expected = naive(c);
  EXPECT_LE(relative_error(c.y, expected.y), tolerance(DType::f64, c.S));
  EXPECT_LE(relative_error(c.lse, expected.lse), tolerance(DType::f64, c.S));
}

TEST_P(AttentionShapes, GradientsMatchCentralDifferences) {
  // Hundreds of tiny forwards: one thread each, or they would mostly wait for one another.
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  Case c(GetParam(), DType::f64);
  c.forward(), c.backward();
  const auto loss = [&] {
    c.forward();
    return weighted_sum({&c.y}, {&c.dy});
  };
  check_gradients(loss, {{"q", &c.q, &c.dq}, {"k", &c.k, &c.dk}, {"v", &c.v, &c.dv}},
                  kGradientCheck, 50);
  omp_set_num_threads(threads);
}

TEST_P(AttentionShapes, FloatAgreesWithDouble) {
  Case a(GetParam(), DType::f32), b(GetParam(), DType::f64);
  a.forward(), a.backward();
  b.forward(), b.backward();
  const double bound = tolerance(DType::f32, a.S);
  EXPECT_LE(relative_error(a.y, b.y), bound);
  EXPECT_LE(relative_error(a.lse, b.lse), bound);
  EXPECT_LE(relative_error(a.dv, b.dv), bound);
  // Softmax of one key has no gradient: there, rounding against the size of dv.
  const auto error = [&](const Tensor& x, const Tensor& exact) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < x.numel(); ++i) difference += std::pow(x.get(i) - exact.get(i), 2);
    for (int64_t i = 0; i < b.dv.numel(); ++i) norm += std::pow(b.dv.get(i), 2);
    for (int64_t i = 0; i < x.numel(); ++i) norm += std::pow(exact.get(i), 2);
    return std::sqrt(difference / norm);
  };
  EXPECT_LE(error(a.dq, b.dq), bound);
  EXPECT_LE(error(a.dk, b.dk), bound);
}

TEST_P(AttentionShapes, RerunsAndThreadCountsAreBitEqual) {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  Case a(GetParam(), DType::f32);
  a.forward(), a.backward();
  omp_set_num_threads(2);
  Case b(GetParam(), DType::f32);
  b.forward(), b.backward();
  omp_set_num_threads(threads);
  EXPECT_TRUE(bit_equal(a.y, b.y) && bit_equal(a.lse, b.lse));
  EXPECT_TRUE(bit_equal(a.dq, b.dq) && bit_equal(a.dk, b.dk) && bit_equal(a.dv, b.dv));
}

TEST(Attention, UnseenKeysHaveZeroGradients) {
  // Queries 70..74 with a window of 30 see keys 41..74 of 150.
  Case c(attention_shapes()[12], DType::f64);
  c.k.set(0, std::numeric_limits<double>::quiet_NaN());
  c.forward(), c.backward();
  for (int64_t s = 0; s < 150; ++s) {
    const bool seen = s >= 41 && s <= 74;
    for (int64_t i = 0; i < 3; ++i) {
      EXPECT_EQ(c.dk.get(s * 3 + i) != 0, seen) << s;
      EXPECT_EQ(c.dv.get(s * 3 + i) != 0, seen) << s;
    }
  }
}

TEST(Attention, LargeScoresStayFinite) {
  Case c({.T = 80, .Hq = 1, .hd = 4}, DType::f32);
  for (int64_t i = 0; i < c.q.numel(); ++i) c.q.set(i, 200 * c.q.get(i));
  c.forward(), c.backward();
  for (const Tensor* tensor : {&c.y, &c.lse, &c.dq, &c.dk, &c.dv}) {
    for (int64_t i = 0; i < tensor->numel(); ++i) EXPECT_TRUE(std::isfinite(tensor->get(i)));
  }
}

TEST(Attention, KeepsNoScores) {
  Arena saved = Arena::counting("saved", kCpu), scratch = Arena::counting("scratch", kCpu);
  const Context ctx{.device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
  const int64_t T = 100000;
  const auto tensor = [](const Dims& dims, DType dtype) {
    return TensorView(static_cast<void*>(nullptr), dims, dtype);
  };
  const TensorView x = tensor({1, T, 1, 8}, DType::f32);
  const TensorView doc_begin = tensor({1, T}, DType::i32), lse = tensor({1, T, 1}, DType::f32);
  attention_forward(ctx, {.q = x, .k = x, .v = x, .doc_begin = doc_begin, .y = x, .lse = lse});
  EXPECT_EQ(scratch.peak(), 0u);
  attention_backward(ctx, {.dy = x,
                           .q = x,
                           .k = x,
                           .v = x,
                           .doc_begin = doc_begin,
                           .y = x,
                           .lse = lse,
                           .dq = x,
                           .dk = x,
                           .dv = x});
  EXPECT_LE(scratch.peak(), align_up(T * 4));
}

TEST(Attention, RefusesWrongShapes) {
  const AttentionShape good{.T = 6, .Hq = 4, .Hkv = 2, .hd = 3};
  const auto refuses = [&](auto&& spoil) {
    Case c(good, DType::f32);
    c.forward(), c.backward();
    spoil(c);
    EXPECT_THROW((c.forward(), c.backward()), Error);
  };
  refuses([](Case& c) { c.shape.query_begin = 1; });  // the last query would have no key
  refuses([](Case& c) { c.shape.window = -1; });
  refuses([](Case& c) { c.k = Tensor({1, 6, 3, 3}, DType::f32); });
  refuses([](Case& c) { c.v = Tensor({1, 6, 2, 4}, DType::f32); });
  refuses([](Case& c) { c.lse = Tensor({1, 6, 2}, DType::f32); });
  refuses([](Case& c) { c.doc_begin = Tensor({1, 7}, DType::i32); });
  refuses([](Case& c) { c.dk = Tensor({1, 6, 4, 3}, DType::f32); });
}

}  // namespace
}  // namespace sluice::test
