#include "kernels/ssd_step/ssd_step.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

struct Shape {
  int64_t B = 1, H = 1, G = 1, P = 1, N = 1;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
};
void PrintTo(const Shape& s, std::ostream* out) {
  *out << "B" << s.B << " H" << s.H << " G" << s.G << " P" << s.P << " N" << s.N;
}

class SsdStepGpu : public testing::TestWithParam<Shape> {};

TEST_P(SsdStepGpu, AgreesWithCpu) {
  const Shape& s = GetParam();
  check_on_gpu([&](Side& side) {
    const TensorView x = side.normal({s.B, s.H, s.P}, 1, 0, 3);
    const TensorView state = side.stat_normal({s.B, s.H, s.P, s.N});
    for (const char* y : {"y", "y of the next token"}) {
      ssd_step(side.ctx(), {.x = x,
                            .dt_raw = side.normal({s.B, s.H}, 1, 0, 5),
                            .dt_bias = side.stat_normal({s.H}),
                            .A_log = side.stat_normal({s.H}, 0.3),
                            .B = side.normal({s.B, s.G, s.N}, 1, 0, 1),
                            .C = side.normal({s.B, s.G, s.N}, 1, 0, 1),
                            .D = side.stat_normal({s.H}),
                            .state = state,
                            .y = side.output(y, x.dims, side.dtype(), 2),
                            .dt_min = s.dt_min,
                            .dt_max = s.dt_max});
    }
    side.compare("state", state);
  });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SsdStepGpu,
    testing::Values(Shape{}, Shape{.B = 3, .H = 6, .G = 3, .P = 7, .N = 5},
                    Shape{.B = 2, .H = 4, .P = 9, .N = 70, .dt_min = 0.2, .dt_max = 0.5},
                    Shape{.B = 2, .H = 8, .P = 64, .N = 128}));

}  // namespace
}  // namespace sluice::test
