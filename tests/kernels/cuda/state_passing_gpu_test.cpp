#include "kernels/state_passing/state_passing.h"

#include "kernels/elementwise/elementwise.h"
#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

struct Shape {
  int64_t B = 1, M = 1, H = 1, P = 1, N = 1;
  int64_t padding = 0;
};
void PrintTo(const Shape& s, std::ostream* out) {
  *out << "B" << s.B << " M" << s.M << " H" << s.H << " P" << s.P << " N" << s.N << " padding "
       << s.padding;
}

class StatePassingGpu : public testing::TestWithParam<Shape> {
 protected:
  // States are f32 whatever the activations are.
  static TensorView states(Side& side, const Dims& dims, int64_t padding) {
    const TensorView values = side.stat_normal(dims);
    const TensorView padded = side.output("", dims, side.stat(), padding);
    copy(side.ctx(), values, padded);
    return padded;
  }
};

TEST_P(StatePassingGpu, ForwardAgreesWithCpu) {
  const auto& [B, M, H, P, N, padding] = GetParam();
  const Dims chunks{B, M, H, P, N}, ends{B, H, P, N}, decays{B, M, H};
  check_on_gpu([&, H = H, B = B, padding = padding](Side& side) {
    const TensorView state = states(side, chunks, padding);
    const TensorView decay = side.stat_normal(decays, 0.3, 0.7);
    const TensorView initial = states(side, ends, padding);
    state_passing_forward(side.ctx(),
                          {.state = state,
                           .decay = decay,
                           .initial = initial,
                           .incoming = side.output("incoming", chunks, side.stat(), padding),
                           .final_state = side.output("final", ends, side.stat(), padding),
                           .total_decay = side.output("total", {B, H}, side.stat())});
    state_passing_forward(
        side.ctx(),
        {.state = state, .decay = decay, .final_state = side.output("fold", ends, side.stat())});
    state_passing_forward(side.ctx(),
                          {.state = state,
                           .decay = decay,
                           .incoming = side.output("narrow", chunks, side.dtype(), padding)});
    state_passing_forward(side.ctx(), {.state = state, .decay = decay, .incoming = state});
  });
}

TEST_P(StatePassingGpu, BackwardAgreesWithCpu) {
  const auto& [B, M, H, P, N, padding] = GetParam();
  const Dims chunks{B, M, H, P, N}, ends{B, H, P, N}, decays{B, M, H};
  check_on_gpu([&, padding = padding](Side& side) {
    const TensorView dincoming = states(side, chunks, padding);
    const TensorView incoming = states(side, chunks, padding);
    const TensorView decay = side.stat_normal(decays, 0.3, 0.7);
    const TensorView dfinal = states(side, ends, padding);
    state_passing_backward(side.ctx(),
                           {.dincoming = dincoming,
                            .incoming = incoming,
                            .decay = decay,
                            .dfinal = dfinal,
                            .doutgoing = side.output("doutgoing", chunks, side.stat(), padding),
                            .dlog_decay = side.output("dlog_decay", decays, side.stat()),
                            .dinitial = side.output("dinitial", ends, side.stat(), padding)});
    state_passing_backward(side.ctx(),
                           {.dincoming = dincoming,
                            .decay = decay,
                            .doutgoing = side.output("narrow", chunks, side.dtype(), padding)});
    state_passing_backward(side.ctx(),
                           {.dincoming = dincoming,
                            .incoming = side.normal(chunks, 1, 0, padding),
                            .decay = decay,
                            .doutgoing = side.output("narrow too", chunks, side.dtype(), padding),
                            .dlog_decay = side.output("of narrow", decays, side.stat())});
    state_passing_backward(side.ctx(), {.dincoming = dincoming,
                                        .decay = decay,
                                        .dinitial = side.output("fold", ends, side.stat())});
    state_passing_backward(side.ctx(),
                           {.dincoming = dincoming,
                            .incoming = incoming,
                            .decay = decay,
                            .doutgoing = dincoming,
                            .dlog_decay = side.output("dlog_decay2", decays, side.stat())});
  });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, StatePassingGpu,
    testing::Values(Shape{}, Shape{.B = 2, .M = 5, .H = 3, .P = 7, .N = 5},
                    Shape{.B = 2, .M = 4, .H = 2, .P = 8, .N = 20},
                    Shape{.B = 2, .M = 9, .H = 2, .P = 16, .N = 33},
                    Shape{.M = 3, .H = 2, .P = 8, .N = 16, .padding = 2},
                    Shape{.B = 2, .M = 7, .H = 4, .P = 64, .N = 128, .padding = 4}));

}  // namespace
}  // namespace sluice::test
