// B batch, T tokens, E channels, N state dim
#include "kernels/selective_scan/selective_scan.h"

#include "kernels/selective_scan/selective_scan_cuda.h"
#include "tests/support/gpu_twin.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

struct ScanShape {
  int64_t B, T, E, N;
  std::vector<std::vector<int64_t>> starts = {};
  int64_t first = 0;  // doc_begin of each row's first document; negative: a state comes in
  bool gate = true;
  bool bare = false;  // without optional arguments
  int64_t padding = 0;
};
std::ostream& operator<<(std::ostream& out, const ScanShape& s) {
  return out << "B" << s.B << " T" << s.T << " E" << s.E << " N" << s.N << " first " << s.first
             << (s.gate ? " gate" : "") << (s.bare ? " bare" : "") << " padding " << s.padding;
}

// What all of the operator's functions read.
struct Inputs {
  Inputs(Side& side, const ScanShape& s)
      : u(side.normal({s.B, s.T, s.E}, 1, 0, s.padding)),
        delta(side.normal({s.B, s.T, s.E}, 1, 0, s.padding)),
        z(s.gate ? side.normal({s.B, s.T, s.E}, 1, 0, s.padding) : TensorView()),
        B(side.normal({s.B, s.T, s.N}, 1, 0, s.padding)),
        C(side.normal({s.B, s.T, s.N}, 1, 0, s.padding)),
        dy(side.normal({s.B, s.T, s.E}, 1, 0, s.padding)),
        // Steps around 0.05 and decays near 1, so that states travel across spans.
        dt_bias(side.stat_normal({s.E}, 0.5, -3)),
        A_log(side.stat_normal({s.E, s.N}, 0.5, 0.2)),
        D(side.stat_normal({s.E})),
        docs(side.copy_of(documents(s.B, s.T, s.starts, s.first))),
        initial(side.stat_normal({s.B, s.E, s.N})),
        dfinal(side.stat_normal({s.B, s.E, s.N})) {}

  TensorView u, delta, z, B, C, dy, dt_bias, A_log, D, docs, initial, dfinal;
};

void forward_and_backward(Side& side, const ScanShape& s) {
  const Inputs in(side, s);
  const TensorView none;
  const Dims of_state{s.B, s.E, s.N}, of_token{s.B, s.T, s.E}, of_BC{s.B, s.T, s.N};
  const auto activation = [&](const char* name, const Dims& dims) {
    return side.output(name, dims, side.dtype(), s.padding);
  };
  const auto optional = [&](bool given, const TensorView& view) { return given ? view : none; };
  const TensorView spans =
      side.output("span_states", {s.B, scan_spans(s.T), s.E, s.N}, side.stat());
  selective_scan_forward(
      side.ctx(), {.u = in.u,
                   .delta = in.delta,
                   .dt_bias = in.dt_bias,
                   .A_log = in.A_log,
                   .B = in.B,
                   .C = in.C,
                   .D = in.D,
                   .z = in.z,
                   .doc_begin = in.docs,
                   .initial_state = optional(!s.bare, in.initial),
                   .y = activation("y", of_token),
                   .span_states = spans,
                   .final_state = s.bare ? none : side.output("final", of_state, side.stat())});
  selective_scan_backward(
      side.ctx(),
      {.dy = in.dy,
       .u = in.u,
       .delta = in.delta,
       .dt_bias = in.dt_bias,
       .A_log = in.A_log,
       .B = in.B,
       .C = in.C,
       .D = in.D,
       .z = in.z,
       .doc_begin = in.docs,
       .span_states = spans,
       .dfinal_state = optional(!s.bare, in.dfinal),
       .du = activation("du", of_token),
       .ddelta = activation("ddelta", of_token),
       .dB = activation("dB", of_BC),
       .dC = activation("dC", of_BC),
       .dz = s.gate ? activation("dz", of_token) : none,
       .y = s.bare ? none : activation("y again", of_token),
       .ddt_bias = side.compare("ddt_bias", side.stat_normal({s.E})),
       .dA_log = side.compare("dA_log", side.stat_normal({s.E, s.N})),
       .dD = side.compare("dD", side.stat_normal({s.E})),
       .dinitial_state = s.bare ? none : side.output("dinitial", of_state, side.stat())});
}

void folds(Side& side, const ScanShape& s) {
  const Inputs in(side, s);
  const Dims of_state{s.B, s.E, s.N};
  selective_scan_fold(side.ctx(), {.u = in.u,
                                   .delta = in.delta,
                                   .dt_bias = in.dt_bias,
                                   .A_log = in.A_log,
                                   .B = in.B,
                                   .doc_begin = in.docs,
                                   .state = side.output("state", of_state, side.stat()),
                                   .dt_sum = side.output("dt_sum", {s.B, s.E}, side.stat())});
  selective_scan_reverse_fold(side.ctx(),
                              {.dy = in.dy,
                               .delta = in.delta,
                               .dt_bias = in.dt_bias,
                               .A_log = in.A_log,
                               .C = in.C,
                               .z = in.z,
                               .doc_begin = in.docs,
                               .dinitial_state = side.output("dinitial", of_state, side.stat())});
}

class SelectiveScanGpu : public testing::TestWithParam<ScanShape> {};

TEST_P(SelectiveScanGpu, AgreesWithCpu) {
  check_on_gpu([&](Side& side) { forward_and_backward(side, GetParam()); });
}
TEST_P(SelectiveScanGpu, FoldsAgreeWithCpu) {
  check_on_gpu([&](Side& side) { folds(side, GetParam()); });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SelectiveScanGpu,
    testing::Values(
        ScanShape{.B = 1, .T = 1, .E = 1, .N = 1},
        ScanShape{.B = 2, .T = 5, .E = 3, .N = 2, .first = -3},
        ScanShape{.B = 1, .T = 31, .E = 13, .N = 7, .starts = {{1, 2, 30}}, .gate = false},
        ScanShape{.B = 2, .T = 32, .E = 40, .N = 16, .starts = {{31}, {}}, .first = -1},
        ScanShape{.B = 1, .T = 49, .E = 67, .N = 3, .starts = {{16, 32}}, .first = -40},
        ScanShape{.B = 2, .T = 63, .E = 70, .N = 16, .bare = true, .padding = 3},
        // Rows in several pieces: at least two spans each where there are few channels.
        ScanShape{.B = 2, .T = 97, .E = 5, .N = 8, .starts = {{32, 63, 64, 65}, {96}}, .first = -2},
        ScanShape{.B = 1, .T = 517, .E = 131, .N = 16, .first = -1, .gate = false, .padding = 8},
        ScanShape{.B = 2, .T = 300, .E = 64, .N = 16, .starts = {{64, 191}}, .first = -1},
        ScanShape{.B = 3, .T = 256, .E = 33, .N = 16, .gate = false, .bare = true},
        // More states than a thread has.
        ScanShape{.B = 2, .T = 40, .E = 37, .N = 32, .starts = {{9}}, .first = -1},
        ScanShape{.B = 2, .T = 70, .E = 48, .N = 32, .starts = {{33, 64}}, .first = -1},
        ScanShape{.B = 1, .T = 200, .E = 12, .N = 37, .starts = {{77}}, .first = -1},
        ScanShape{.B = 1, .T = 33, .E = 9, .N = 17, .gate = false, .bare = true},
        // Mamba 130M; then blocks of 64 and 48 channels, in one piece.
        ScanShape{.B = 2, .T = 160, .E = 1536, .N = 16, .starts = {{}, {100}}},
        ScanShape{.B = 9, .T = 40, .E = 1536, .N = 16, .first = -1},
        ScanShape{.B = 5, .T = 70, .E = 4093, .N = 16, .starts = {{}, {17}}, .first = -1}));

// Least work: pieces of several spans, blocks of 48 channels and, where there are many, of 64; more
// states than a thread has; rows in single elements.
class SelectiveScanGpuLeast : public testing::TestWithParam<ScanShape> {};

TEST_P(SelectiveScanGpuLeast, AgreesWithCpu) {
  check_on_gpu([](Side& side) { forward_and_backward(side, GetParam()); }, {.least = true});
}
TEST_P(SelectiveScanGpuLeast, FoldsAgreeWithCpu) {
  check_on_gpu([](Side& side) { folds(side, GetParam()); }, {.least = true});
}
INSTANTIATE_TEST_SUITE_P(
    Shapes, SelectiveScanGpuLeast,
    testing::Values(
        ScanShape{.B = 1, .T = 140, .E = 40, .N = 16, .starts = {{64, 70}}, .first = -1},
        ScanShape{.B = 1, .T = 70, .E = 13, .N = 17, .starts = {{33}}, .first = -1, .padding = 1},
        ScanShape{.B = 140, .T = 33, .E = 64, .N = 16, .first = -1}));

TEST(SelectiveScanGpuWidth, KeepsProcessorsBusy) {
  EXPECT_EQ(cuda::scan_width(8, 2048, 4096), 64);
  EXPECT_EQ(cuda::scan_width(16, 2048, 1536), 48);
  EXPECT_EQ(cuda::scan_width(140, 33, 64), 64);
  EXPECT_EQ(cuda::scan_pieces(4, 8192, 4096), 1);
  EXPECT_EQ(cuda::scan_pieces(1, 8192, 4096), 9);
  EXPECT_EQ(cuda::scan_pieces(1, 40, 64), 1);
}

TEST(SelectiveScanGpuDecay, AgreesWithCpu) {
  check_on_gpu([](Side& side) {
    const int64_t B = 2, T = 20, E = 7, N = 5;
    const std::vector<int64_t> cuts = {0, 6, 13, 20};
    selective_scan_decay(side.ctx(),
                         {.dt_sum = side.stat_normal({3, B * E}, 0.2, 1),
                          .A_log = side.stat_normal({E, N}, 0.5),
                          .doc_begin = side.copy_of(documents(B, T, {{6}, {8, 12}}, -1)),
                          .cuts = cuts,
                          .decay = side.output("decay", {3, B * E * N}, side.stat())});
  });
}

TEST(SelectiveScanGpuStep, AgreesWithCpu) {
  check_on_gpu([](Side& side) {
    const int64_t B = 3, E = 37, N = 19;
    const TensorView state = side.compare("state", side.stat_normal({B, E, N}));
    for (const bool gate : {true, false}) {
      selective_scan_step(side.ctx(), {.u = side.normal({B, E}, 1, 0, 3),
                                       .delta = side.normal({B, E}),
                                       .dt_bias = side.stat_normal({E}, 0.5, -3),
                                       .A_log = side.stat_normal({E, N}, 0.5, 0.2),
                                       .B = side.normal({B, N}, 1, 0, 5),
                                       .C = side.normal({B, N}, 1, 0, 5),
                                       .D = side.stat_normal({E}),
                                       .z = gate ? side.normal({B, E}, 1, 0, 1) : TensorView(),
                                       .state = state,
                                       .y = side.output("y", {B, E}, side.dtype())});
    }
  });
}

}  // namespace
}  // namespace sluice::test
