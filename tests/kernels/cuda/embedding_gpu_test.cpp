#include "kernels/embedding/embedding.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

struct Case {
  int64_t B = 1, T = 1, V = 1, D = 1;
  int64_t padding = 0;  // of rows of y and dy
  double frequent = 0;  // the share of tokens that are token V / 2
};

TensorView tokens_of(Side& side, const Case& c) {
  std::vector<double> ids(c.B * c.T);
  const RngKey key{.seed = 7, .stream = uint64_t(c.V)};
  for (int64_t i = 0; i < c.B * c.T; ++i) {
    const double draw = random_uniform(key, 2 * i);
    ids[i] = draw < c.frequent ? double(c.V / 2)
                               : std::floor(random_uniform(key, 2 * i + 1) * double(c.V));
  }
  return side.values({c.B, c.T}, DType::i32, ids);
}

class EmbeddingGpu : public testing::TestWithParam<Case> {};

TEST_P(EmbeddingGpu, AgreesWithCpu) {
  check_on_gpu(
      [](Side& side) {
        const Case& c = GetParam();
        const TensorView tokens = tokens_of(side, c);
        const Dims dims = {c.B, c.T, c.D};
        embedding_forward(side.ctx(), {.tokens = tokens,
                                       .weight = side.normal({c.V, c.D}),
                                       .y = side.output("y", dims, side.dtype(), c.padding)});
        embedding_backward(side.ctx(),
                           {.tokens = tokens,
                            .dy = side.normal(dims, 1, 0, c.padding),
                            .dweight = side.compare("dweight", side.stat_normal({c.V, c.D}))});
      },
      {.arena_bytes = size_t{4} << 20});
}

// One token; pieces and tiles that are not full; runs over two, three and all pieces; one, two and
// three digits of ids; rows of several blocks, rows that are not read by 16 bytes.
INSTANTIATE_TEST_SUITE_P(
    Cases, EmbeddingGpu,
    testing::Values(Case{}, Case{.B = 2, .T = 16, .V = 3, .D = 8},
                    Case{.B = 3, .T = 37, .V = 11, .D = 96, .padding = 8},
                    Case{.B = 2, .T = 1111, .V = 600, .D = 37, .frequent = 0.3},
                    Case{.B = 4, .T = 1024, .V = 5, .D = 40, .padding = 3},
                    Case{.B = 2, .T = 2048, .V = 50288, .D = 24, .frequent = 0.05},
                    Case{.B = 1, .T = 3000, .V = 300000, .D = 1, .frequent = 0.5},
                    Case{.B = 2, .T = 300, .V = 1000, .D = 4104, .frequent = 0.4},
                    Case{.B = 1, .T = 2049, .V = 512, .D = 64, .frequent = 1}));

TEST(EmbeddingGpuEdges, TokensInWiderRows) {
  check_on_gpu(
      [](Side& side) {
        const TensorView tokens = tokens_of(side, {.B = 3, .T = 50, .V = 20}).columns(3, {40});
        const Dims dims = {3, 40, 16};
        embedding_forward(side.ctx(), {.tokens = tokens,
                                       .weight = side.normal({20, 16}),
                                       .y = side.output("y", dims, side.dtype())});
        embedding_backward(side.ctx(),
                           {.tokens = tokens,
                            .dy = side.normal(dims),
                            .dweight = side.compare("dweight", side.stat_normal({20, 16}))});
      },
      {.arena_bytes = size_t{1} << 20});
}

// Weights in bf16 may begin a residual stream in f32.
TEST(EmbeddingGpuEdges, WidensAndMarksUnknownTokens) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  const int64_t V = 10, D = 24;
  Side side({Device::Kind::cuda, 0}, DType::bf16, DType::bf16, 1, size_t{1} << 20);
  const TensorView tokens = side.values({1, 5}, DType::i32, {3, 10, -1, 3, 1 << 30});
  const TensorView weight = side.normal({V, D}), dy = side.normal({1, 5, D});
  const TensorView y = side.output("y", {1, 5, D}, DType::f32);
  const TensorView dweight = side.values({V, D}, DType::f32, std::vector<double>(V * D, 0));
  embedding_forward(side.ctx(), {.tokens = tokens, .weight = weight, .y = y});
  embedding_backward(side.ctx(), {.tokens = tokens, .dy = dy, .dweight = dweight});
  const std::vector<double> rows = side.download(y), table = side.download(weight);
  const std::vector<double> gradient = side.download(dweight), of_y = side.download(dy);
  for (int64_t i = 0; i < D; ++i) {
    for (const int64_t t : {0, 3}) EXPECT_EQ(rows[t * D + i], table[3 * D + i]);
    for (const int64_t t : {1, 2, 4}) EXPECT_TRUE(std::isnan(rows[t * D + i]));
    for (int64_t v = 0; v < V; ++v) {
      const double expected = v == 3 ? of_y[i] + of_y[3 * D + i] : 0;
      EXPECT_NEAR(gradient[v * D + i], expected, 1e-6);
    }
  }
}

}  // namespace
}  // namespace sluice::test
