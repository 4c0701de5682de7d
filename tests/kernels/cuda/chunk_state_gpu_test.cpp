#include "kernels/chunk_state/chunk_state.h"

#include "kernels/chunk_state/chunk_state_cuda.h"
#include "kernels/chunk_state/entering_states.h"
#include "kernels/core/arena.h"
#include "kernels/core/chunks.h"
#include "tests/support/gpu_twin.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

struct Shape {
  int64_t B = 1, T = 1, H = 1, G = 1, P = 1, N = 1, Q = 1;
  std::vector<std::vector<int64_t>> starts = {};
  int64_t padding = 8;  // of rows of x and B
};
void PrintTo(const Shape& s, std::ostream* out) {
  *out << "B" << s.B << " T" << s.T << " H" << s.H << " G" << s.G << " P" << s.P << " N" << s.N
       << " Q" << s.Q << " padding " << s.padding;
}

// Step sizes, and their sums as chunk_cumsum takes them, as f32 on both sides.
struct Steps {
  TensorView dt, cum;
};
Steps steps(Side& side, const Shape& shape, const Tensor& doc_begin) {
  const int64_t H = shape.H;
  std::vector<double> dt(shape.B * shape.T * H), cum(dt.size());
  for (int64_t row = 0; row < shape.B * shape.T; ++row) {
    const int64_t t = row % shape.T;
    for (int64_t h = 0; h < H; ++h) {
      const int64_t at = row * H + h;
      dt[at] = float(0.1 * std::exp(random_normal({.seed = 3, .stream = 1}, at)));
      const bool restarts = t % shape.Q == 0 || doc_begin.get(row) == t;
      cum[at] = float((restarts ? 0 : cum[at - H]) - dt[at] * (1 + h % 3));
    }
  }
  const Dims dims{shape.B, shape.T, H};
  return {side.values(dims, side.stat(), dt), side.values(dims, side.stat(), cum)};
}

void forward_and_backward(Side& side, const Shape& s) {
  const Tensor documents_on_host = documents(s.B, s.T, s.starts, -1);
  const int64_t M = num_chunks(s.T, s.Q);
  const Dims state{s.B, M, s.H, s.P, s.N}, decay{s.B, M, s.H}, token{s.B, s.T, s.H};
  const TensorView doc_begin = side.copy_of(documents_on_host);
  const auto [dt, cum] = steps(side, s, documents_on_host);
  const TensorView x = side.normal({s.B, s.T, s.H, s.P}, 1, 0, s.padding);
  const TensorView B = side.normal({s.B, s.T, s.G, s.N}, 1, 0, s.padding);
  chunk_state_forward(side.ctx(), {.x = x,
                                   .B = B,
                                   .dt = dt,
                                   .cum = cum,
                                   .doc_begin = doc_begin,
                                   .state = side.output("state", state, side.stat()),
                                   .decay = side.output("decay", decay, side.stat()),
                                   .chunk = s.Q});
  const bool narrow = s.H % 2 == 1;  // dstate may have either dtype
  chunk_state_backward(side.ctx(), {.dstate = narrow ? side.normal(state) : side.stat_normal(state),
                                    .dlog_decay = side.stat_normal(decay),
                                    .x = x,
                                    .B = B,
                                    .dt = dt,
                                    .cum = cum,
                                    .doc_begin = doc_begin,
                                    .dx = side.compare("dx", side.normal(x.dims, 1, 0, s.padding)),
                                    .dB = side.compare("dB", side.normal(B.dims, 1, 0, s.padding)),
                                    .ddt = side.compare("ddt", side.stat_normal(token)),
                                    .dcum = side.compare("dcum", side.stat_normal(token)),
                                    .chunk = s.Q});
}

void enter(Side& side, const Shape& s) {
  const Tensor documents_on_host = documents(s.B, s.T, s.starts, -1);
  const int64_t M = num_chunks(s.T, s.Q);
  const Dims states{s.B, M, s.H, s.P, s.N}, ends{s.B, s.H, s.P, s.N}, row{s.B, s.H};
  const auto [dt, cum] = steps(side, s, documents_on_host);
  const EnteringStates args{.x = side.normal({s.B, s.T, s.H, s.P}, 1, 0, s.padding),
                            .B = side.normal({s.B, s.T, s.G, s.N}, 1, 0, s.padding),
                            .dt = dt,
                            .cum = cum,
                            .doc_begin = side.copy_of(documents_on_host),
                            .chunk = s.Q};
  const TensorView initial = side.stat_normal(ends);
  const auto run = [&](const std::string& how, const ConstTensorView& begin, const FindState& find,
                       bool ends_too) {
    EnteringStates all = args;
    all.initial = begin, all.find_initial = find;
    all.incoming = side.output("incoming " + how, states, side.dtype());
    all.decay = side.output("decay " + how, {s.B, M, s.H}, side.stat());
    if (ends_too) all.final_state = side.output("final " + how, ends, side.stat());
    entering_states(side.ctx(), all);
  };
  run("from given", initial, {}, true);
  run("from zero", {}, {}, false);
  const auto find = [&](const StateFold& fold) -> ConstTensorView {
    fold(side.output("added", ends, side.stat()), side.output("decay of all", row, side.stat()));
    return initial;
  };
  run("from found", {}, find, true);
  run(
      "from found before", {}, [&](const StateFold&) { return initial; }, false);
  fold_states(side.ctx(), args, side.output("folded", ends, side.stat()),
              side.output("row's decay", row, side.stat()));
}

// The fold in f32 holds what every chunk adds.
GpuBounds bounds_of(const Shape& s) {
  const int64_t states = s.B * num_chunks(s.T, s.Q) * s.H * s.P * s.N;
  return {.arena_bytes = align_up((size_t{16} << 20) + 4 * size_t(states))};
}

class ChunkStateGpu : public testing::TestWithParam<Shape> {};
TEST_P(ChunkStateGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) { forward_and_backward(side, GetParam()); });
}

class EnteringStatesGpu : public testing::TestWithParam<Shape> {};
TEST_P(EnteringStatesGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) { enter(side, GetParam()); }, bounds_of(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(
    Plain, ChunkStateGpu,
    testing::Values(Shape{}, Shape{.B = 2, .T = 5, .H = 2, .P = 3, .N = 2, .Q = 1},
                    Shape{.T = 5, .H = 2, .G = 2, .P = 3, .N = 4, .Q = 8},
                    Shape{.B = 2, .T = 23, .H = 6, .G = 3, .P = 7, .N = 5, .Q = 5, .padding = 3},
                    Shape{.B = 2,
                          .T = 150,
                          .H = 3,
                          .P = 72,
                          .N = 80,
                          .Q = 70,
                          .starts = {{70, 139}, {1, 69, 100, 149}},
                          .padding = 1}));

INSTANTIATE_TEST_SUITE_P(Plain, EnteringStatesGpu,
                         testing::Values(Shape{.B = 2, .T = 9, .H = 2, .P = 3, .N = 2, .Q = 4}));

// Shapes that tensor cores take: ragged tiles and chunks, documents within and at their edges, and
// rows that 16-byte copies cannot read.
std::vector<Shape> model_shapes() {
  return {{.T = 1, .H = 8, .P = 64, .N = 128, .Q = 128},
          {.B = 2, .T = 256, .H = 4, .P = 64, .N = 128, .Q = 128},
          {.T = 300, .H = 3, .P = 64, .N = 128, .Q = 256, .starts = {{37, 257}}},
          {.B = 2,
           .T = 333,
           .H = 6,
           .G = 2,
           .P = 64,
           .N = 128,
           .Q = 128,
           .starts = {{127, 300}, {5, 128, 256, 332}}},
          {.T = 200, .H = 8, .G = 8, .P = 64, .N = 128, .Q = 64},
          {.T = 70, .H = 2, .P = 64, .N = 128, .Q = 24},
          {.T = 200, .H = 2, .P = 64, .N = 128, .Q = 128, .padding = 3}};
}
INSTANTIATE_TEST_SUITE_P(Model, ChunkStateGpu, testing::ValuesIn(model_shapes()));
INSTANTIATE_TEST_SUITE_P(Model, EnteringStatesGpu, testing::ValuesIn(model_shapes()));
// Other heads and states; so many chunks that heads are not split; so many heads that blocks are
// wide.
INSTANTIATE_TEST_SUITE_P(
    Further, ChunkStateGpu,
    testing::Values(Shape{.T = 90, .H = 2, .P = 128, .N = 64, .Q = 70},
                    Shape{.T = 2000, .H = 2, .P = 64, .N = 128, .Q = 16, .starts = {{1003}}}));
INSTANTIATE_TEST_SUITE_P(
    Further, EnteringStatesGpu,
    testing::Values(Shape{.T = 90, .H = 2, .P = 128, .N = 64, .Q = 32},
                    Shape{.T = 70, .H = 132, .P = 64, .N = 128, .Q = 32, .starts = {{40}}},
                    Shape{.T = 70, .H = 200, .P = 64, .N = 128, .Q = 32, .starts = {{40}}}));

// Rows so long, of so few heads, that walks go over runs of two chunks side by side, and over one
// at last.
Shape long_rows() {
  return {.B = 2,
          .T = 3100,
          .H = 10,
          .P = 64,
          .N = 128,
          .Q = 128,
          .starts = {{100, 255, 256, 3099}, {}}};
}
INSTANTIATE_TEST_SUITE_P(Runs, EnteringStatesGpu, testing::Values(long_rows()));

TEST(RunSchedule, TakesLongRowsOfFewHeadsByRuns) {
  const auto of = [](const Shape& s) { return cuda::RunSchedule({s.B, s.T, s.H, s.P}, s.N, s.Q); };
  const cuda::RunSchedule runs = of(long_rows());
  EXPECT_EQ(runs.chunks, 2);
  EXPECT_EQ(runs.count, 13);
  EXPECT_TRUE(runs.gains);
  EXPECT_TRUE(of({.T = 16384, .H = 24, .P = 64, .N = 128, .Q = 128}).gains);
  EXPECT_FALSE(of({.T = 2048, .H = 24, .P = 64, .N = 128, .Q = 128}).gains);
  EXPECT_FALSE(of({.T = 16384, .H = 64, .P = 64, .N = 128, .Q = 128}).gains);
  EXPECT_EQ(of({.T = 16384, .H = 64, .P = 64, .N = 128, .Q = 128}).count, 4);
  EXPECT_EQ(of({.T = 70, .H = 200, .P = 64, .N = 128, .Q = 32}).count, 1);
}

// The least work of the kernels on tensor cores: more tiles of a chunk, and more chunks, than are
// in shared memory at a time; more heads of a block; wide blocks.
GpuBounds least(const Shape& shape) {
  return {.arena_bytes = size_t{32} << 20, .in_f32 = shape.P < 64, .least = true};
}

class ChunkStateGpuLeast : public testing::TestWithParam<Shape> {};
TEST_P(ChunkStateGpuLeast, AgreesWithCpu) {
  check_on_gpu([](Side& side) { forward_and_backward(side, GetParam()); }, least(GetParam()));
}
INSTANTIATE_TEST_SUITE_P(
    Shapes, ChunkStateGpuLeast,
    testing::Values(Shape{.B = 2, .T = 9, .H = 2, .P = 3, .N = 2, .Q = 4},
                    Shape{.T = 300, .H = 2, .P = 64, .N = 128, .Q = 256, .starts = {{37, 257}}},
                    Shape{.T = 130 * 16, .H = 4, .P = 64, .N = 128, .Q = 16}));

class EnteringStatesGpuLeast : public testing::TestWithParam<Shape> {};
TEST_P(EnteringStatesGpuLeast, AgreesWithCpu) {
  check_on_gpu([](Side& side) { enter(side, GetParam()); }, least(GetParam()));
}
INSTANTIATE_TEST_SUITE_P(
    Shapes, EnteringStatesGpuLeast,
    testing::Values(Shape{.T = 330, .H = 2, .P = 64, .N = 128, .Q = 256, .starts = {{37, 257}}},
                    Shape{.T = 300, .H = 120, .P = 64, .N = 128, .Q = 128, .starts = {{40}}}));

}  // namespace
}  // namespace sluice::test
