#include "kernels/attention/attention.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <memory>
#include <numeric>

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
    for (int64_t s = 0; s <= std::min(c.S - 1, t + a.query_begin); ++s) {
      if (s < c.doc_begin.get(b * a.T + t) + a.query_begin) continue;
      if (a.window > 0 && s <= t + a.query_begin - a.window) continue;
      double score = 0;
      for (int64_t i = 0; i < a.hd; ++i) score += c.q.get(row * a.hd + i) * c.k.get(key(s) + i);
      weight[s] = std::exp(scale * score);
      total += weight[s];
      for (int64_t i = 0; i < a.hd; ++i) sum[i] += weight[s] * c.v.get(key(s) + i);
    }
    const double divisor = total > 0 ? total : 1;
    for (int64_t i = 0; i < a.hd; ++i) out.y.set(row * a.hd + i, sum[i] / divisor);
    out.lse.set(row, std::log(total));
  }
  return out;
}

// The relative error of lse, in which queries that see no key must be the same ones.
double lse_error(const Tensor& a, const Tensor& b) {
  Tensor finite_a = a.clone(), finite_b = b.clone();
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double nothing_seen = -std::numeric_limits<double>::infinity();
    if (a.get(i) == nothing_seen && b.get(i) == nothing_seen) {
      finite_a.set(i, 0), finite_b.set(i, 0);
    }
  }
  return relative_error(finite_a, finite_b);
}

// Softmax of one key has no gradient: there, rounding against the size of dv.
double gradient_error(const Tensor& x, const Tensor& exact, const Tensor& dv) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < x.numel(); ++i) difference += std::pow(x.get(i) - exact.get(i), 2);
  for (int64_t i = 0; i < dv.numel(); ++i) norm += std::pow(dv.get(i), 2);
  for (int64_t i = 0; i < x.numel(); ++i) norm += std::pow(exact.get(i), 2);
  return difference == 0 ? 0 : std::sqrt(difference / norm);
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
      {.name = "keys_before",
       .B = 2,
       .T = 70,
       .S = 67,
       .Hq = 4,
       .Hkv = 2,
       .hd = 4,
       .query_begin = 67,
       .first = -100},
      {.name = "keys_far_before", .T = 5, .S = 3, .Hq = 2, .hd = 4, .query_begin = 200},
      {.name = "keys_leave_the_window",
       .T = 90,
       .S = 70,
       .Hq = 2,
       .hd = 3,
       .query_begin = 72,
       .window = 40,
       .first = -1000},
      {.name = "keys_of_the_document_before",
       .B = 2,
       .T = 70,
       .S = 66,
       .Hq = 2,
       .hd = 3,
       .query_begin = 66,
       .starts = {{5}, {64, 65}},
       .first = -30},
      {.name = "keys_after_some_queries", .T = 100, .S = 70, .Hq = 2, .hd = 3, .query_begin = -66},
      {.name = "keys_after_all_queries", .T = 20, .S = 7, .Hq = 1, .hd = 3, .query_begin = -20},
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
  EXPECT_LE(lse_error(c.lse, expected.lse), tolerance(DType::f64, c.S));
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
  EXPECT_LE(lse_error(a.lse, b.lse), bound);
  EXPECT_LE(relative_error(a.dv, b.dv), bound);
  EXPECT_LE(gradient_error(a.dq, b.dq, b.dv), bound);
  EXPECT_LE(gradient_error(a.dk, b.dk, b.dv), bound);
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

// The keys of `whole` cut into blocks: partial results merged in any order, gradients by one call a
// block with the final y and lse.
struct Blocks {
  Blocks(const Case& whole, const std::vector<int64_t>& cuts)
      : y(whole.y.dims(), whole.y.dtype(), 4),
        lse(whole.lse.dims(), whole.lse.dtype()),
        dq(whole.q.dims(), whole.q.dtype(), 3),
        dk(whole.k.dims(), whole.k.dtype()),
        dv(whole.v.dims(), whole.v.dtype()) {
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      AttentionShape shape = whole.shape;
      shape.S = cuts[i + 1] - cuts[i];
      shape.query_begin -= cuts[i];
      blocks.push_back(std::make_unique<Case>(shape, whole.y.dtype()));
      move_keys(whole, *blocks.back(), cuts[i]);
    }
  }
  static void move_keys(const Case& whole, Case& block, int64_t begin) {
    const int64_t width = whole.k.view().row_size();
    for (int64_t i = 0; i < block.k.numel(); ++i) {
      const int64_t b = i / (block.S * width);
      const int64_t at = i + (b * (whole.S - block.S) + begin) * width;
      block.k.set(i, whole.k.get(at)), block.v.set(i, whole.v.get(at));
    }
  }
  void forward(const std::vector<int>& order) {
    for (const int block : order) blocks[block]->forward();
    y = blocks[order[0]]->y.clone(), lse = blocks[order[0]]->lse.clone();
    for (size_t i = 1; i < order.size(); ++i) {
      const Case& part = *blocks[order[i]];
      attention_merge(ctx, {.part_y = part.y, .part_lse = part.lse, .y = y, .lse = lse});
    }
  }
  void backward(const Case& whole, const std::vector<int64_t>& cuts) {
    const int64_t width = whole.k.view().row_size();
    for (size_t n = 0; n < blocks.size(); ++n) {
      Case& block = *blocks[n];
      attention_backward(ctx, {.dy = whole.dy,
                               .q = whole.q,
                               .k = block.k,
                               .v = block.v,
                               .doc_begin = whole.doc_begin,
                               .y = y,
                               .lse = lse,
                               .dq = dq,
                               .dk = block.dk,
                               .dv = block.dv,
                               .query_begin = block.shape.query_begin,
                               .window = block.shape.window,
                               .scale = block.shape.scale,
                               .add_to_dq = n > 0});
      for (int64_t i = 0; i < block.dk.numel(); ++i) {
        const int64_t b = i / (block.S * width);
        const int64_t at = i + (b * (whole.S - block.S) + cuts[n]) * width;
        dk.set(at, block.dk.get(i)), dv.set(at, block.dv.get(i));
      }
    }
  }
  TestContext ctx;
  std::vector<std::unique_ptr<Case>> blocks;
  Tensor y, lse, dq, dk, dv;
};

TEST_P(AttentionShapes, BlocksOfKeysMergeToTheWhole) {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  for (const DType dtype : {DType::f64, DType::f32}) {
    Case whole(GetParam(), dtype);
    whole.forward(), whole.backward();
    std::vector<int64_t> cuts = {0};
    for (const int64_t cut : {int64_t{1}, whole.S / 3, whole.S / 3 + 1, whole.S - 1, whole.S}) {
      if (cut > cuts.back()) cuts.push_back(cut);
    }
    std::vector<int> order(cuts.size() - 1);
    std::iota(order.begin(), order.end(), 0);
    const double bound = tolerance(dtype, whole.S);
    Blocks blocks(whole, cuts);
    for (int turn = 0; turn < 2; ++turn) {
      blocks.forward(order);
      EXPECT_LE(relative_error(blocks.y, whole.y), bound);
      EXPECT_LE(lse_error(blocks.lse, whole.lse), bound);
      std::reverse(order.begin(), order.end());
    }
    blocks.backward(whole, cuts);
    EXPECT_LE(relative_error(blocks.dv, whole.dv), bound);
    EXPECT_LE(gradient_error(blocks.dq, whole.dq, whole.dv), bound);
    EXPECT_LE(gradient_error(blocks.dk, whole.dk, whole.dv), bound);
  }
  omp_set_num_threads(threads);
}

TEST(AttentionMerge, HandComputed) {
  // Weights 1 and 3: log 1 and log 3.
  TestContext ctx;
  Tensor y({1, 1, 1, 2}, DType::f64), lse({1, 1, 1}, DType::f64);
  Tensor part_y(y.dims(), DType::f64), part_lse(lse.dims(), DType::f64);
  y.fill({4, 8}), lse.fill(0), part_y.fill({8, 0}), part_lse.fill(std::log(3));
  attention_merge(ctx, {.part_y = part_y, .part_lse = part_lse, .y = y, .lse = lse});
  EXPECT_NEAR(y.get(0), 7, 1e-14);
  EXPECT_NEAR(y.get(1), 2, 1e-14);
  EXPECT_NEAR(lse.get(0), std::log(4), 1e-14);
}

TEST(AttentionMerge, UnseenBlocksChangeNoBits) {
  TestContext ctx;
  const double nothing_seen = -std::numeric_limits<double>::infinity();
  const Dims dims{2, 3, 4, 5}, rows{2, 3, 4};
  const Tensor value = normal(dims, DType::f32, 1), value_lse = normal(rows, DType::f32, 2, 100);
  const Tensor zero = zeros(dims, DType::f32);
  Tensor unseen(rows, DType::f32);
  unseen.fill(nothing_seen);
  Tensor y = value.clone(), lse = value_lse.clone();
  attention_merge(ctx, {.part_y = zero, .part_lse = unseen, .y = y, .lse = lse});
  EXPECT_TRUE(bit_equal(y, value) && bit_equal(lse, value_lse));
  y = zero.clone(), lse = unseen.clone();
  attention_merge(ctx, {.part_y = zero, .part_lse = unseen, .y = y, .lse = lse});
  EXPECT_TRUE(bit_equal(y, zero) && bit_equal(lse, unseen));
  attention_merge(ctx, {.part_y = value, .part_lse = value_lse, .y = y, .lse = lse});
  EXPECT_TRUE(bit_equal(y, value) && bit_equal(lse, value_lse));
}

TEST(AttentionMerge, RefusesWrongShapes) {
  TestContext ctx;
  const Tensor y = zeros({1, 2, 3, 4}, DType::f32), lse = zeros({1, 2, 3}, DType::f32);
  const Tensor short_lse = zeros({1, 2, 2}, DType::f32), wide = zeros({1, 2, 3, 5}, DType::f32);
  const auto merge = [&](const Tensor& part_y, const Tensor& part_lse) {
    attention_merge(ctx, {.part_y = part_y, .part_lse = part_lse, .y = y, .lse = lse});
  };
  EXPECT_NO_THROW(merge(y, lse));
  EXPECT_THROW(merge(wide, lse), Error);
  EXPECT_THROW(merge(y, short_lse), Error);
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

// Also where no GPU is, as a plan asks.
TEST(Attention, SaysWhatAGpuRunsWith) {
  const auto text = [](Device device, int64_t hd, DType dtype, AttentionBackend backend) {
    const TensorView x(nullptr, {1, 32, 2, hd}, dtype, device);
    const TensorView doc_begin(nullptr, {1, 32}, DType::i32, device);
    return describe_kernels(
        device, {.q = x, .k = x, .v = x, .doc_begin = doc_begin, .y = x, .backend = backend},
        {.dy = x, .q = x, .k = x, .v = x, .doc_begin = doc_begin, .y = x, .backend = backend});
  };
  const Device gpu{Device::Kind::cuda, 0};
  const auto own = AttentionBackend::own, cudnn = AttentionBackend::cudnn;
  EXPECT_EQ(text(gpu, 128, DType::bf16, own), "");
  EXPECT_EQ(text(gpu, 160, DType::f32, own), "");
  EXPECT_EQ(text(kCpu, 160, DType::f32, cudnn), "");
  const std::string plain = text(gpu, 160, DType::bf16, own);
  EXPECT_EQ(plain.find("attention of head_dim 160 runs on plain kernels, about "), 0u) << plain;
  EXPECT_NE(plain.find("which take multiples of 8 up to 128"), std::string::npos) << plain;
  const std::string refused = text(gpu, 160, DType::bf16, cudnn);
  EXPECT_EQ(refused.find("backend: cudnn is asked for, our own kernels run: "), 0u) << refused;
  EXPECT_NE(refused.find(plain), std::string::npos) << refused;
}

TEST(Attention, RefusesWrongShapes) {
  const AttentionShape good{.T = 6, .Hq = 4, .Hkv = 2, .hd = 3};
  const auto refuses = [&](auto&& spoil) {
    Case c(good, DType::f32);
    c.forward(), c.backward();
    spoil(c);
    EXPECT_THROW((c.forward(), c.backward()), Error);
  };
  refuses([](Case& c) { c.k = Tensor({1, 0, 2, 3}, DType::f32); });
  refuses([](Case& c) { c.shape.window = -1; });
  refuses([](Case& c) { c.k = Tensor({1, 6, 3, 3}, DType::f32); });
  refuses([](Case& c) { c.v = Tensor({1, 6, 2, 4}, DType::f32); });
  refuses([](Case& c) { c.lse = Tensor({1, 6, 2}, DType::f32); });
  refuses([](Case& c) { c.doc_begin = Tensor({1, 7}, DType::i32); });
  refuses([](Case& c) { c.dk = Tensor({1, 6, 4, 3}, DType::f32); });
}

}  // namespace
}  // namespace sluice::test
