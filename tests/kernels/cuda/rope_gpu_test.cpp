#include "kernels/rope/rope.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

struct RopeShape {
  const char* name = "";
  int64_t B = 1, T = 1, heads = 1, head_dim = 2, rotary_dims = 2;
  int64_t padding = 0;
  int64_t far = 0;  // added to positions
  double theta = 10000;
};

class RopeGpu : public testing::TestWithParam<RopeShape> {};

TEST_P(RopeGpu, AgreesWithCpu) {
  const RopeShape& shape = GetParam();
  std::vector<double> positions(shape.B * shape.T);
  for (int64_t n = 0; n < shape.B * shape.T; ++n) {  // of documents of 7 tokens
    positions[n] = double(n % shape.T % 7 + shape.far);
  }
  check_on_gpu(
      [&](Side& side) {
        const Dims dims{shape.B, shape.T, shape.heads, shape.head_dim};
        Rope rope{.x = side.compare("forward", side.normal(dims, 1, 0, shape.padding)),
                  .positions = side.values({shape.B, shape.T}, DType::i32, positions),
                  .rotary_dims = shape.rotary_dims,
                  .theta = shape.theta};
        rope_forward(side.ctx(), rope);
        rope.x = side.compare("backward", side.normal(dims, 1, 0, shape.padding));
        rope_backward(side.ctx(), rope);
      },
      {.rounds_once = true});
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, RopeGpu,
    testing::Values(RopeShape{.name = "one_pair"}, RopeShape{.name = "nothing", .rotary_dims = 0},
                    RopeShape{"primes", 3, 13, 5, 11, 6}, RopeShape{"odd_rows", 2, 9, 3, 64, 64, 3},
                    RopeShape{"partial", 2, 19, 3, 64, 32, 64},
                    RopeShape{"whole_head", 2, 130, 8, 128, 128, 128},
                    RopeShape{"far_positions", 1, 8, 2, 128, 128, 0, 1 << 20, 500000}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace sluice::test
