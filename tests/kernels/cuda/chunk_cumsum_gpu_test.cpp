#include "kernels/chunk_cumsum/chunk_cumsum.h"

#include "tests/support/gpu_twin.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

struct Shape {
  int64_t B = 1, T = 1, H = 1, Q = 1;
  std::vector<std::vector<int64_t>> starts = {};
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
};
void PrintTo(const Shape& shape, std::ostream* out) {
  *out << "B" << shape.B << " T" << shape.T << " H" << shape.H << " Q" << shape.Q;
}

class ChunkCumsumGpu : public testing::TestWithParam<Shape> {};

TEST_P(ChunkCumsumGpu, AgreesWithCpu) {
  const Shape& shape = GetParam();
  check_on_gpu([&](Side& side) {
    const Dims dims{shape.B, shape.T, shape.H};
    const Tensor documents_on_host = documents(shape.B, shape.T, shape.starts, -1);
    const TensorView doc_begin = side.copy_of(documents_on_host);
    const TensorView dt_raw = side.normal(dims, 1, 0, 5), dt_bias = side.stat_normal({shape.H});
    const TensorView A_log = side.stat_normal({shape.H}, 0.3);
    chunk_cumsum_forward(side.ctx(), {.dt_raw = dt_raw,
                                      .dt_bias = dt_bias,
                                      .A_log = A_log,
                                      .doc_begin = doc_begin,
                                      .dt = side.output("dt", dims, side.stat()),
                                      .cum = side.output("cum", dims, side.stat()),
                                      .chunk = shape.Q,
                                      .dt_min = shape.dt_min,
                                      .dt_max = shape.dt_max});
    chunk_cumsum_backward(side.ctx(),
                          {.ddt = side.stat_normal(dims),
                           .dcum = side.stat_normal(dims),
                           .dt_raw = dt_raw,
                           .dt_bias = dt_bias,
                           .A_log = A_log,
                           .doc_begin = doc_begin,
                           .ddt_raw = side.output("ddt_raw", dims, side.dtype(), 3),
                           .ddt_bias = side.compare("ddt_bias", side.stat_normal({shape.H})),
                           .dA_log = side.compare("dA_log", side.stat_normal({shape.H})),
                           .chunk = shape.Q,
                           .dt_min = shape.dt_min,
                           .dt_max = shape.dt_max});
  });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ChunkCumsumGpu,
    testing::Values(Shape{}, Shape{.B = 2, .T = 5, .H = 2, .Q = 1},
                    Shape{.B = 2, .T = 9, .H = 33, .Q = 64, .starts = {{}, {3, 4}}},
                    Shape{.B = 3, .T = 101, .H = 5, .Q = 30, .starts = {{30, 60}, {29, 31, 100}}},
                    Shape{.T = 40, .H = 3, .Q = 20, .starts = {{1, 2, 3, 4, 5, 6, 7, 8, 19, 20}}},
                    Shape{.T = 70, .H = 40, .Q = 32, .dt_min = 0.2, .dt_max = 0.5},
                    Shape{.B = 2, .T = 700, .H = 64, .Q = 256, .starts = {{255, 256, 500}, {699}}},
                    Shape{.T = 2048, .H = 80, .Q = 128}));

}  // namespace
}  // namespace sluice::test
