#include "kernels/linear_xent/linear_xent.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

constexpr GpuBounds kBounds{.arena_bytes = size_t{48} << 20};

struct Shape {
  int64_t B, T, D, V;
  int64_t chunk_tokens;  // 0: the default
};

// Every fifth token without a target, the last one at the last word.
std::vector<double> targets_of(const Shape& s) {
  std::vector<double> targets(s.B * s.T);
  for (size_t t = 0; t < targets.size(); ++t)
    targets[t] = t % 5 == 3 ? -1 : double((t * 7919 + 13) % s.V);
  targets.back() = double(s.V - 1);
  return targets;
}

// The gradients are sums over tokens of rounded numbers: their own bounds are the defaults.
void run(Side& side, const Shape& s, bool with_weights) {
  const std::string name = concat("T ", s.T, " D ", s.D, " V ", s.V, ": ");
  const TensorView hidden = side.normal({s.B, s.T, s.D});
  const TensorView weight = side.normal({s.V, s.D}, 1 / std::sqrt(double(s.D)));
  const TensorView targets = side.values({s.B, s.T}, DType::i32, targets_of(s));
  const TensorView weights = with_weights ? side.stat_normal({s.B, s.T}, 0.3, 1) : TensorView{};
  const int64_t chunk_bytes = s.chunk_tokens * s.V * int64_t(size_of(side.dtype()));
  linear_xent_forward(side.ctx(),
                      {.hidden = hidden,
                       .weight = weight,
                       .targets = targets,
                       .weights = weights,
                       .losses = side.output(name + "forward losses", {s.B, s.T}, side.stat()),
                       .loss_sum = side.output(name + "forward sum", {1}, DType::f64),
                       .chunk_bytes = chunk_bytes});
  linear_xent_forward_backward(
      side.ctx(), {.hidden = hidden,
                   .weight = weight,
                   .targets = targets,
                   .weights = weights,
                   .losses = side.output(name + "losses", {s.B, s.T}, side.stat()),
                   .loss_sum = side.output(name + "sum", {1}, DType::f64),
                   .dhidden = side.output(name + "dhidden", {s.B, s.T, s.D}, side.dtype()),
                   .dweight = side.compare(name + "dweight", side.stat_normal({s.V, s.D}, 0.01)),
                   .loss_scale = 0.37,
                   .chunk_bytes = chunk_bytes});
}

TEST(LinearXentGpu, AgreesWithCpu) {
  check_on_gpu(
      [](Side& side) {
        run(side, {.B = 2, .T = 37, .D = 96, .V = 128, .chunk_tokens = 0}, false);
        run(side, {.B = 3, .T = 5, .D = 17, .V = 101, .chunk_tokens = 4}, true);
        // Few numbers, but no result of one number alone, which may lie near 0.
        run(side, {.B = 1, .T = 1, .D = 8, .V = 101, .chunk_tokens = 0}, true);
        run(side, {.B = 1, .T = 40, .D = 1, .V = 101, .chunk_tokens = 0}, true);
        run(side, {.B = 2, .T = 20, .D = 16, .V = 3, .chunk_tokens = 0}, true);
        run(side, {.B = 1, .T = 9, .D = 8, .V = 1, .chunk_tokens = 2}, false);
      },
      kBounds);
}

// Rows of many loads a thread, with a rest; in bf16 the last is too long for shared memory.
TEST(LinearXentGpu, LargeVocabulary) {
  check_on_gpu(
      [](Side& side) {
        run(side, {.B = 2, .T = 33, .D = 24, .V = 50281, .chunk_tokens = 24}, true);
        run(side, {.B = 1, .T = 17, .D = 32, .V = 32768, .chunk_tokens = 0}, false);
        run(side, {.B = 1, .T = 6, .D = 8, .V = 60001, .chunk_tokens = 0}, true);
      },
      kBounds);
}

// Extremes of logits: exponentials that vanish beside the largest.
TEST(LinearXentGpu, LargeLogits) {
  check_on_gpu(
      [](Side& side) {
        const TensorView hidden = side.normal({1, 64, 16}, 20), weight = side.normal({300, 16}, 4);
        const Shape s{.B = 1, .T = 64, .D = 16, .V = 300, .chunk_tokens = 0};
        linear_xent_forward(side.ctx(), {.hidden = hidden,
                                         .weight = weight,
                                         .targets = side.values({1, 64}, DType::i32, targets_of(s)),
                                         .losses = side.output("losses", {1, 64}, side.stat()),
                                         .loss_sum = side.output("sum", {1}, DType::f64)});
      },
      kBounds);
}

TEST(LinearXentGpu, TargetOutsideTheVocabularyGivesNaN) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  for (const double wrong : {-2.0, 11.0, 4e8}) {
    Side side({Device::Kind::cuda, 0}, DType::bf16, DType::bf16, 1, kBounds.arena_bytes);
    const TensorView losses = side.nothing({1, 4}, side.stat());
    const TensorView dhidden = side.nothing({1, 4, 8}, side.dtype());
    const TensorView sum = side.nothing({1}, DType::f64);
    linear_xent_forward_backward(side.ctx(),
                                 {.hidden = side.normal({1, 4, 8}),
                                  .weight = side.normal({11, 8}),
                                  .targets = side.values({1, 4}, DType::i32, {3, -1, wrong, 10}),
                                  .losses = losses,
                                  .loss_sum = sum,
                                  .dhidden = dhidden,
                                  .dweight = side.stat_normal({11, 8})});
    const std::vector<double> loss = side.download(losses), dx = side.download(dhidden);
    EXPECT_TRUE(std::isfinite(loss[0]) && loss[1] == 0 && std::isfinite(loss[3]));
    EXPECT_TRUE(std::isnan(loss[2]) && std::isnan(side.download(sum)[0]));
    for (int64_t i = 0; i < 8; ++i) {
      EXPECT_TRUE(std::isfinite(dx[i]) && dx[8 + i] == 0 && std::isnan(dx[16 + i]));
    }
  }
}

}  // namespace
}  // namespace sluice::test
