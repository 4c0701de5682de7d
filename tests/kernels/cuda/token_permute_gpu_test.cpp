#include "kernels/token_permute/token_permute.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

struct Case {
  int64_t B, T, k, X, D;
  int64_t capacity;
  bool before;
  int64_t padding;
};
constexpr Case kCases[] = {{2, 37, 2, 8, 96, 0, false, 0},     {1, 1, 1, 1, 1, 0, false, 0},
                           {3, 50, 3, 5, 17, 0, false, 0},     {2, 64, 2, 40, 64, 2, false, 8},
                           {2, 33, 2, 4, 40, 11, true, 3},     {1, 2500, 2, 16, 24, 200, false, 0},
                           {300, 10, 1, 3, 8, 2, true, 0},     {1, 7000, 1, 100, 8, 0, false, 0},
                           {1, 777, 2, 16, 2056, 0, false, 0}, {2, 129, 2, 16, 4100, 0, false, 4},
                           {3, 3000, 2, 20, 8, 500, true, 0},  {2, 40, 4, 300, 264, 0, false, 0}};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B" << c.B << " T" << c.T << " k" << c.k << " X" << c.X << " D" << c.D
             << " capacity " << c.capacity;
}

// Each token's choices differ; some experts are chosen often, some never.
TensorView choices(Side& side, const Case& c) {
  std::vector<double> experts;
  for (int64_t t = 0; t < c.B * c.T; ++t) {
    const int64_t first = t * t % 101 % c.X;
    for (int64_t j = 0; j < c.k; ++j) experts.push_back(double((first + j * (1 + t % 2)) % c.X));
  }
  return side.values({c.B, c.T, c.k}, DType::i32, experts);
}

struct Order {
  TensorView slot, offsets;
};
Order order_of(Side& side, const Case& c) {
  const Order order{.slot = side.output("slot", {c.B, c.T, c.k}, DType::i32),
                    .offsets = side.output("offsets", {c.X + 1}, DType::i64)};
  std::vector<double> before(c.B * c.X);
  for (size_t i = 0; i < before.size(); ++i) before[i] = double(i * 5 % 13);
  token_index(side.ctx(),
              {.experts = choices(side, c),
               .before = c.before ? side.values({c.B, c.X}, side.stat(), before) : TensorView{},
               .slot = order.slot,
               .offsets = order.offsets,
               .kept = side.output("kept", {c.X}, DType::i32),
               .capacity = c.capacity});
  return order;
}

class TokenPermuteGpu : public testing::TestWithParam<Case> {};

TEST_P(TokenPermuteGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) {
    const Case& c = GetParam();
    const Order order = order_of(side, c);
    const Dims activations{c.B, c.T, c.D}, sorted{c.B * c.T * c.k, c.D};
    // Rows beyond the last kept one stay what they were.
    const auto rows = [&] { return side.normal(sorted, 1, 0, c.padding); };
    token_permute_forward(side.ctx(), {.x = side.normal(activations, 1, 0, c.padding),
                                       .slot = order.slot,
                                       .rows = side.compare("rows", rows())});
    token_permute_backward(side.ctx(),
                           {.drows = rows(),
                            .slot = order.slot,
                            .dx = side.output("dx", activations, side.dtype(), c.padding)});
    const TensorView weights = side.stat_normal({c.B, c.T, c.k});
    const TensorView out = rows();
    token_unpermute_forward(side.ctx(),
                            {.rows = out,
                             .slot = order.slot,
                             .weights = weights,
                             .y = side.output("y", activations, side.dtype(), c.padding)});
    const TensorView dy = side.normal(activations, 1, 0, c.padding);
    const auto backward = [&](const char* what, const TensorView& drows) {
      token_unpermute_backward(
          side.ctx(),
          {.dy = dy,
           .rows = out,
           .slot = order.slot,
           .weights = weights,
           .drows = side.compare(std::string(what) + "drows", drows),
           .dweights = side.output(std::string(what) + "dweights", weights.dims, side.stat())});
    };
    backward("", rows());
    backward("in place ", out);
  });
}

TEST_P(TokenPermuteGpu, BackwardTakesTheRoutersPartAlong) {
  check_on_gpu(
      [](Side& side) {
        const Case& c = GetParam();
        const Order order = order_of(side, c);
        token_permute_backward(side.ctx(),
                               {.drows = side.normal({c.B * c.T * c.k, c.D}, 1, 0, c.padding),
                                .slot = order.slot,
                                .dlogits = side.stat_normal({c.B, c.T, c.X}),
                                .router = side.stat_normal({c.X, c.D}),
                                .dx = side.output("dx", {c.B, c.T, c.D}, side.dtype(), c.padding)});
      },
      {.arena_bytes = size_t{48} << 20});  // what a product by cuBLAS wants
}

INSTANTIATE_TEST_SUITE_P(Cases, TokenPermuteGpu, testing::ValuesIn(kCases));

TEST(TokenPermuteGpuEdges, DropsWhatIsNoExpert) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  Side side({Device::Kind::cuda, 0}, DType::bf16, DType::bf16, 1, size_t{1} << 20);
  const TensorView slot = side.nothing({1, 3, 2}, DType::i32);
  const TensorView offsets = side.nothing({4}, DType::i64);
  token_index(side.ctx(), {.experts = side.values({1, 3, 2}, DType::i32, {2, -1, 0, 3, 1 << 30, 2}),
                           .slot = slot,
                           .offsets = offsets});
  EXPECT_EQ(side.download(slot), (std::vector<double>{1, -1, 0, -1, -1, 2}));
  EXPECT_EQ(side.download(offsets), (std::vector<double>{0, 1, 1, 3}));
}

}  // namespace
}  // namespace sluice::test
