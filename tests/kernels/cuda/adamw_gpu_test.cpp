#include "kernels/adamw/adamw.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

constexpr GpuBounds kBounds = {.f32 = 1e-6, .bf16 = 1e-6, .arena_bytes = size_t{1} << 16};

struct Case {
  int64_t n = 1;
  std::vector<double> spans;  // rows of kNumSpanColumns
  int64_t first = 0;          // of the arena
  int64_t begin = 0;          // the arrays begin this far into their memory
  bool apply = true;
};

TensorView span_table(Side& side, const Case& c) {
  const int64_t count = int64_t(c.spans.size()) / kNumSpanColumns;
  return side.values({count, kNumSpanColumns}, DType::f64, c.spans);
}

AdamW arguments(Side& side, const Case& c) {
  const auto part = [&](const TensorView& all) { return all.columns(c.begin, {c.n}); };
  const Dims dims = {c.begin + c.n};
  const TensorView value = side.compare("value", side.stat_normal(dims));
  const TensorView m = side.compare("m", side.stat_normal(dims, 0.1));
  const TensorView v = side.compare("v", side.stat_normal(dims, 0.01, 0.1));
  const TensorView scalars =
      side.values({kNumUpdateScalars}, DType::f64,
                  {0.01, 1 - 0.9 * 0.9, 1 - 0.95 * 0.95, 0.7, double(c.apply)});
  return {.value = part(value),
          .grad = part(side.stat_normal(dims)),
          .exp_avg = part(m),
          .exp_avg_sq = part(v),
          .scalars = scalars,
          .spans = span_table(side, c),
          .first = c.first};
}

// Spans of 1, 2, 3, ... elements, every third one left out.
std::vector<double> many_spans(double end) {
  std::vector<double> spans;
  double begin = 0;
  for (int i = 1; begin < end; begin += i++) {
    if (i % 3 == 0) continue;
    spans.insert(spans.end(), {begin, begin + i, i % 2 * 0.1, 1.0 / i});
  }
  return spans;
}

class AdamWGpu : public testing::TestWithParam<Case> {};

TEST_P(AdamWGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) { adamw(side.ctx(), arguments(side, GetParam())); }, kBounds);
}

// One element; a tile and a bit; edges anywhere, with gaps; a piece of the arena that begins and
// ends within spans; arrays that cannot be read by 16 bytes; nothing applied; no span here.
INSTANTIATE_TEST_SUITE_P(
    Cases, AdamWGpu,
    testing::Values(Case{1, {0, 1, 0.1, 1}}, Case{8192 + 13, {0, 8192 + 13, 0.1, 1}},
                    Case{20011, many_spans(20011)}, Case{9001, many_spans(20011), 7777},
                    Case{20000, {0, 7, 0.1, 1, 9, 8200, 0, 0.5, 8200, 30000, 0.2, 2}, 0, 1},
                    Case{100, {0, 100, 0.1, 1}, 0, 0, false}, Case{50, {0, 10, 0.1, 1}, 60},
                    Case{50, {120, 130, 0.1, 1}, 60}));

TEST(AdamWGpuEdges, WritesRoundedValues) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  for (const int64_t begin : {0, 4, 1}) {
    Side side({Device::Kind::cuda, 0}, DType::bf16, DType::bf16, 1, size_t{1} << 16);
    const int64_t n = 9003;
    AdamW args = arguments(side, {.n = n, .spans = {3, double(n), 0.1, 1}, .begin = begin});
    const TensorView all = side.normal({begin + n});
    args.rounded = all.columns(begin, {n});
    const auto elements = [&](TensorView view) {
      view.row_stride = n;  // not the whole array's
      return side.download(view);
    };
    const std::vector<double> before = elements(args.rounded);
    adamw(side.ctx(), args);
    const std::vector<double> values = elements(args.value);
    const std::vector<double> rounded = elements(args.rounded);
    for (int64_t i = 0; i < n; ++i)
      ASSERT_EQ(rounded[i], i < 3 ? before[i] : double(float(bf16(float(values[i]))))) << i;
  }
}

}  // namespace
}  // namespace sluice::test
