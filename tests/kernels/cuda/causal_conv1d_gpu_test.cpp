#include "kernels/causal_conv1d/causal_conv1d.h"

#include "kernels/causal_conv1d/causal_conv1d_cuda.h"
#include "tests/support/gpu_twin.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

struct ConvShape {
  int64_t B, T, C, K;
  std::vector<std::vector<int64_t>> starts = {};
  int64_t first = 0;  // doc_begin of each row's first document
  bool halo = false;
  bool bias = true;
  bool silu = true;
  int64_t padding = 0;  // of the rows of x, y, dy and dx
};
std::ostream& operator<<(std::ostream& out, const ConvShape& s) {
  return out << "B" << s.B << " T" << s.T << " C" << s.C << " K" << s.K << " first " << s.first
             << (s.halo ? " halo" : "") << (s.bias ? " bias" : "") << (s.silu ? " silu" : "")
             << " padding " << s.padding;
}

class CausalConv1dGpu : public testing::TestWithParam<ConvShape> {};

TEST_P(CausalConv1dGpu, AgreesWithCpu) {
  const ConvShape& s = GetParam();
  check_on_gpu(
      [&](Side& side) {
        const TensorView none;
        const TensorView x = side.normal({s.B, s.T, s.C}, 1, 0, s.padding);
        const TensorView weight = side.normal({s.C, s.K}, 0.5);
        const TensorView bias = s.bias ? side.stat_normal({s.C}) : none;
        const TensorView docs = side.copy_of(documents(s.B, s.T, s.starts, s.first));
        const TensorView halo = s.halo ? side.normal({s.B, s.K - 1, s.C}) : none;
        const TensorView dy = side.normal(x.dims, 1, 0, s.padding);
        causal_conv1d_forward(side.ctx(), {.x = x,
                                           .weight = weight,
                                           .bias = bias,
                                           .doc_begin = docs,
                                           .halo = halo,
                                           .y = side.output("y", x.dims, side.dtype(), s.padding),
                                           .silu = s.silu});
        causal_conv1d_backward(
            side.ctx(), {.dy = dy,
                         .x = x,
                         .weight = weight,
                         .bias = bias,
                         .doc_begin = docs,
                         .halo = halo,
                         .dx = side.output("dx", x.dims, side.dtype(), s.padding),
                         .dweight = side.compare("dweight", side.stat_normal({s.C, s.K})),
                         .dbias = s.bias ? side.compare("dbias", side.stat_normal({s.C})) : none,
                         .dhalo = s.halo ? side.output("dhalo", halo.dims, side.dtype()) : none,
                         .silu = s.silu});
      },
      {.rounds_once = true});
}

// A warp has 128 channels and 24 tokens in the forward; in the backward 13, and 61 in the last
// shape.
INSTANTIATE_TEST_SUITE_P(
    Shapes, CausalConv1dGpu,
    testing::Values(
        ConvShape{.B = 1, .T = 1, .C = 8, .K = 4, .first = -1, .halo = true},
        ConvShape{.B = 2, .T = 2, .C = 16, .K = 4, .first = -2, .halo = true},
        ConvShape{.B = 2, .T = 3, .C = 264, .K = 4, .first = -9, .halo = true, .padding = 8},
        ConvShape{.B = 2,
                  .T = 67,
                  .C = 40,
                  .K = 4,
                  .starts = {{8, 16, 17, 18, 31, 32, 33, 60, 61, 62, 63, 66}, {1}},
                  .first = -3,
                  .halo = true},
        ConvShape{.B = 3, .T = 61, .C = 136, .K = 4, .starts = {{}, {30, 60}}, .bias = false},
        ConvShape{.B = 1, .T = 300, .C = 528, .K = 4, .starts = {{63, 122, 183}}, .silu = false},
        ConvShape{.B = 5, .T = 130, .C = 8, .K = 4, .first = -3, .padding = 16},
        // Plain: other widths, alignments and numbers of taps.
        ConvShape{.B = 2, .T = 70, .C = 13, .K = 4, .starts = {{3}}, .first = -1, .halo = true},
        ConvShape{.B = 2, .T = 9, .C = 16, .K = 4, .first = -2, .halo = true, .padding = 1},
        ConvShape{.B = 1, .T = 5, .C = 3, .K = 1, .first = -2},
        ConvShape{.B = 2, .T = 33, .C = 24, .K = 3, .starts = {{4, 5}}, .first = -1, .halo = true},
        ConvShape{.B = 1, .T = 40, .C = 8, .K = 7, .starts = {{20}}, .first = -9, .halo = true},
        // xBC of Mamba-2 1.3B, inside its projection.
        ConvShape{.B = 2,
                  .T = 1300,
                  .C = 4352,
                  .K = 4,
                  .starts = {{200, 390}, {33, 36, 70}},
                  .padding = 4160}));

TEST(CausalConv1dGpuStep, AgreesWithCpu) {
  for (const int64_t K : {4, 2, 1}) {
    check_on_gpu([&](Side& side) {
      const TensorView tail = side.compare("tail", side.normal({3, K - 1, 37}));
      for (const bool with_silu : {true, false}) {
        const TensorView x = side.normal({3, 37}, 1, 0, 5);
        causal_conv1d_step(side.ctx(), {.x = x,
                                        .weight = side.normal({37, K}),
                                        .bias = with_silu ? side.stat_normal({37}) : TensorView(),
                                        .tail = tail,
                                        .y = side.output("y", x.dims, side.dtype(), 3),
                                        .silu = with_silu});
      }
    });
  }
}

}  // namespace
}  // namespace sluice::test
