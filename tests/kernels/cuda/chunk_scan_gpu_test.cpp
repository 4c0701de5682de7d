#include "kernels/chunk_scan/chunk_scan.h"

#include "kernels/chunk_scan/ssd_backward.h"
#include "kernels/chunk_scan/ssd_forward.h"
#include "kernels/chunk_scan/ssd_forward_cuda.h"
#include "tests/kernels/ssd_chain.h"
#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

class ChunkScanGpu : public testing::TestWithParam<SsdShape> {};

// Steps, and the sums that chunk_cumsum makes of them.
struct Steps {
  std::vector<double> dt, cum;
};

Steps make_steps(const SsdShape& shape, const Tensor& doc_begin) {
  const auto [name, B, T, H, G, P, N, Q, starts, first, A_log, dt_min, dt_max] = shape;
  Steps steps{std::vector<double>(B * T * H), std::vector<double>(B * T * H)};
  const uint64_t seed = uint64_t(testing::UnitTest::GetInstance()->random_seed());
  for (int64_t i = 0; i < B * T * H; ++i) {
    const double raw = random_normal(RngKey{.seed = seed, .stream = 77}, i);
    steps.dt[i] = float(0.1 * std::log1p(std::exp(raw)));
  }
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < T; ++t) {
      const bool restarts = t % Q == 0 || doc_begin.get(b * T + t) == t;
      for (int64_t h = 0; h < H; ++h) {
        const int64_t i = (b * T + t) * H + h;
        const double before = restarts ? 0 : steps.cum[i - H];
        steps.cum[i] = float(before - steps.dt[i] * std::exp(A_log) * double(1 + h % 3));
      }
    }
  }
  return steps;
}

// x, B and C are columns of one wider row, as projections have them; `padding` elements lie before
// them, and after.
struct Inputs {
  TensorView x, B, C, dt, cum, D, doc_begin, incoming;
};

Inputs make_inputs(Side& side, const SsdShape& shape, int64_t padding) {
  const auto [name, B, T, H, G, P, N, Q, starts, first, A_log, dt_min, dt_max] = shape;
  const Tensor doc_begin = documents(B, T, starts, first);
  const Steps steps = make_steps(shape, doc_begin);
  const TensorView wide = side.normal({B, T, padding + H * P + 2 * G * N}, 1, 0, padding);
  return {.x = wide.columns(padding, {H, P}),
          .B = wide.columns(padding + H * P, {G, N}),
          .C = wide.columns(padding + H * P + G * N, {G, N}),
          .dt = side.values({B, T, H}, side.stat(), steps.dt),
          .cum = side.values({B, T, H}, side.stat(), steps.cum),
          .D = side.stat_normal({H}),
          .doc_begin = side.copy_of(doc_begin),
          .incoming = side.normal({B, num_chunks(T, Q), H, P, N})};
}

void run(Side& side, const SsdShape& shape, int64_t padding) {
  const Inputs in = make_inputs(side, shape, padding);
  const int64_t H = shape.H;
  chunk_scan_forward(side.ctx(), {.x = in.x,
                                  .B = in.B,
                                  .C = in.C,
                                  .dt = in.dt,
                                  .cum = in.cum,
                                  .D = in.D,
                                  .doc_begin = in.doc_begin,
                                  .incoming = in.incoming,
                                  .y = side.output("y", in.x.dims, side.dtype(), padding),
                                  .chunk = shape.Q});
  chunk_scan_backward(side.ctx(),
                      {.dy = side.normal(in.x.dims, 1, 0, padding),
                       .x = in.x,
                       .B = in.B,
                       .C = in.C,
                       .dt = in.dt,
                       .cum = in.cum,
                       .D = in.D,
                       .doc_begin = in.doc_begin,
                       .incoming = in.incoming,
                       .dx = side.output("dx", in.x.dims, side.dtype(), padding),
                       .dB = side.output("dB", in.B.dims, side.dtype(), padding),
                       .dC = side.output("dC", in.C.dims, side.dtype(), padding),
                       .ddt = side.output("ddt", in.dt.dims, side.stat()),
                       .dcum = side.output("dcum", in.cum.dims, side.stat()),
                       .dincoming = side.output("dincoming", in.incoming.dims, side.stat()),
                       .dD = side.compare("dD", side.stat_normal({H})),
                       .chunk = shape.Q});
}

// How what lies beyond a row's ends is known: found by what the row itself makes of zero, or
// before.
enum class Ends { absent, given, found, found_before };

// With the states' part: as ChunkScanGpu, and what flows from the states that chunks leave.
void run_whole_backward(Side& side, const SsdShape& shape, int64_t padding, Ends ends) {
  const Inputs in = make_inputs(side, shape, padding);
  const int64_t B = shape.B, T = shape.T, H = shape.H, M = num_chunks(T, shape.Q);
  const Tensor doc_begin = documents(B, T, shape.starts, shape.first);
  const Steps steps = make_steps(shape, doc_begin);
  std::vector<double> decay(B * M * H);
  for (int64_t chunk = 0; chunk < B * M; ++chunk) {
    const ChunkSpan span(chunk % M, shape.Q, T);
    const int64_t last = chunk / M * T + span.end - 1;
    for (int64_t h = 0; h < H; ++h) {
      const bool starts = doc_begin.get(last) >= double(span.begin);
      decay[chunk * H + h] = starts ? 0 : float(std::exp(steps.cum[last * H + h]));
    }
  }
  const Dims state{B, H, shape.P, shape.N};
  const TensorView dfinal = ends == Ends::absent ? TensorView{} : side.stat_normal(state);
  const auto find = [&](const GradientFold& fold) -> ConstTensorView {
    if (ends == Ends::found) fold(side.output("dinitial", state, side.stat()));
    return dfinal;
  };
  ssd_backward(side.ctx(),
               {.dy = side.normal(in.x.dims, 1, 0, padding),
                .x = in.x,
                .B = in.B,
                .C = in.C,
                .dt = in.dt,
                .cum = in.cum,
                .D = in.D,
                .doc_begin = in.doc_begin,
                .incoming = in.incoming,
                .decay = side.values({B, M, H}, side.stat(), decay),
                .dfinal = ends == Ends::given ? dfinal : TensorView{},
                .find_dfinal = ends >= Ends::found ? FindGradient(find) : FindGradient(),
                .dx = side.output("dx", in.x.dims, side.dtype(), padding),
                .dB = side.output("dB", in.B.dims, side.dtype(), padding),
                .dC = side.output("dC", in.C.dims, side.dtype(), padding),
                .ddt = side.output("ddt", in.dt.dims, side.stat()),
                .dcum = side.output("dcum", in.cum.dims, side.stat()),
                .dD = side.compare("dD", side.stat_normal({H})),
                .chunk = shape.Q});
}

// One by one, the operators hold two sets of states in scratch. Long rows are for runs of bf16.
GpuBounds bounds_of(const SsdShape& s) {
  const int64_t states = s.B * num_chunks(s.T, s.Q) * s.H * s.P * s.N;
  return {.arena_bytes = align_up((size_t{16} << 20) + 12 * size_t(states)), .in_f32 = s.T < 2048};
}

class SsdBackwardGpu : public testing::TestWithParam<SsdShape> {
 protected:
  static void check(int64_t padding, Ends ends) {
    check_on_gpu([&](Side& side) { run_whole_backward(side, GetParam(), padding, ends); },
                 bounds_of(GetParam()));
  }
};

TEST_P(SsdBackwardGpu, AgreesWithCpu) { check(0, Ends::given); }
TEST_P(SsdBackwardGpu, AgreesWithCpuWhereTheGradientIsFound) { check(0, Ends::found); }
TEST_P(SsdBackwardGpu, AgreesWithCpuWhereTheGradientWasFound) { check(0, Ends::found_before); }
TEST_P(SsdBackwardGpu, AgreesWithCpuInAlignedColumns) { check(8, Ends::absent); }
TEST_P(SsdBackwardGpu, AgreesWithCpuInColumns) { check(3, Ends::found); }

void run_whole_forward(Side& side, const SsdShape& shape, int64_t padding, Ends ends) {
  const Inputs in = make_inputs(side, shape, padding);
  const Dims state{shape.B, shape.H, shape.P, shape.N};
  const bool has_ends = ends != Ends::absent;
  const TensorView initial = has_ends ? side.stat_normal(state) : TensorView{};
  const auto find = [&](const StateFold& fold) -> ConstTensorView {
    if (ends == Ends::found)
      fold(side.output("folded", state, side.stat()),
           side.output("decay", {shape.B, shape.H}, side.stat()));
    return initial;
  };
  ssd_forward(side.ctx(),
              {.x = in.x,
               .B = in.B,
               .C = in.C,
               .dt = in.dt,
               .cum = in.cum,
               .D = in.D,
               .doc_begin = in.doc_begin,
               .initial = ends == Ends::given ? initial : TensorView{},
               .find_initial = ends >= Ends::found ? FindState(find) : FindState(),
               .y = side.output("y", in.x.dims, side.dtype(), padding),
               .final_state = has_ends ? side.output("final", state, side.stat()) : TensorView{},
               .chunk = shape.Q});
}

class SsdForwardGpu : public testing::TestWithParam<SsdShape> {
 protected:
  static void check(int64_t padding, Ends ends) {
    check_on_gpu([&](Side& side) { run_whole_forward(side, GetParam(), padding, ends); },
                 bounds_of(GetParam()));
  }
};

TEST_P(SsdForwardGpu, AgreesWithCpu) { check(0, Ends::given); }
TEST_P(SsdForwardGpu, AgreesWithCpuWhereTheStateIsFound) { check(0, Ends::found); }
TEST_P(SsdForwardGpu, AgreesWithCpuWhereTheStateWasFound) { check(0, Ends::found_before); }
TEST_P(SsdForwardGpu, AgreesWithCpuInAlignedColumns) { check(8, Ends::absent); }
TEST_P(SsdForwardGpu, AgreesWithCpuInColumns) { check(3, Ends::found); }

TEST_P(ChunkScanGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) { run(side, GetParam(), 0); });
}
// Rows that are aligned to 16 bytes inside wider ones, and rows that are not.
TEST_P(ChunkScanGpu, AgreesWithCpuInAlignedColumns) {
  check_on_gpu([](Side& side) { run(side, GetParam(), 8); });
}
TEST_P(ChunkScanGpu, AgreesWithCpuInColumns) {
  check_on_gpu([](Side& side) { run(side, GetParam(), 3); });
}

INSTANTIATE_TEST_SUITE_P(Small, ChunkScanGpu, testing::ValuesIn(ssd_shapes()), name_of_shape);
INSTANTIATE_TEST_SUITE_P(Small, SsdBackwardGpu, testing::ValuesIn(ssd_shapes()), name_of_shape);
INSTANTIATE_TEST_SUITE_P(Small, SsdForwardGpu, testing::ValuesIn(ssd_shapes()), name_of_shape);

// The shapes of tensor cores, and around them. Three heads at least: a head's dD is a sum of
// thousands of products of either sign, and of two both may come out next to 0 beside their terms.
// Their error by norm is then large however exact the sums are.
std::vector<SsdShape> wide_shapes() {
  return {
      {.name = "one_chunk_of_256", .T = 256, .H = 4, .P = 64, .N = 128, .Q = 256, .first = -1},
      {.name = "row_starts", .T = 300, .H = 4, .P = 64, .N = 128, .Q = 256},
      {.name = "groups",
       .B = 2,
       .T = 512,
       .H = 6,
       .G = 2,
       .P = 64,
       .N = 128,
       .Q = 256,
       .first = -5,
       .A_log = -3},
      {.name = "documents_in_256",
       .B = 2,
       .T = 777,
       .H = 3,
       .P = 64,
       .N = 128,
       .Q = 256,
       .starts = {{1, 64, 300, 301, 512}, {255, 256, 700}},
       .first = -1},
      {.name = "chunk_of_128",
       .T = 450,
       .H = 4,
       .G = 2,
       .P = 64,
       .N = 128,
       .Q = 128,
       .starts = {{200, 256}},
       .first = -1},
      {.name = "chunk_of_64", .T = 200, .H = 5, .P = 64, .N = 128, .Q = 64, .first = -1},
      {.name = "odd_chunk", .T = 390, .H = 4, .P = 64, .N = 128, .Q = 190, .starts = {{17}}},
      {.name = "fewer_states", .T = 300, .H = 3, .P = 64, .N = 64, .Q = 256, .first = -1},
      {.name = "decays_near_zero",
       .T = 300,
       .H = 4,
       .P = 64,
       .N = 128,
       .Q = 256,
       .starts = {{130}},
       .first = -1,
       .A_log = 3},
      {.name = "head_of_128", .T = 150, .H = 4, .P = 128, .N = 64, .Q = 128, .first = -1},
      {.name = "state_of_16", .T = 300, .H = 4, .P = 64, .N = 16, .Q = 256, .first = -1},
      {.name = "longer_chunk", .T = 400, .H = 4, .P = 64, .N = 128, .Q = 320, .starts = {{5, 350}}},
      // So many chunks that a block has several heads.
      {.name = "several_heads_a_block",
       .T = 539,
       .H = 9,
       .P = 64,
       .N = 128,
       .Q = 16,
       .starts = {{200, 403}},
       .first = -1},
      {.name = "many_heads", .T = 260, .H = 24, .P = 64, .N = 128, .Q = 256, .first = -1},
  };
}
INSTANTIATE_TEST_SUITE_P(Wide, ChunkScanGpu, testing::ValuesIn(wide_shapes()), name_of_shape);
INSTANTIATE_TEST_SUITE_P(Wide, SsdBackwardGpu, testing::ValuesIn(wide_shapes()), name_of_shape);
INSTANTIATE_TEST_SUITE_P(Wide, SsdForwardGpu, testing::ValuesIn(wide_shapes()), name_of_shape);

// So many chunks and heads that a fold goes over several runs, each of several chunks; and so few
// heads of so long a row that a walk does, too.
std::vector<SsdShape> fold_shapes() {
  return {{.name = "runs_of_four",
           .B = 2,
           .T = 390,
           .H = 17,
           .P = 64,
           .N = 128,
           .Q = 16,
           .starts = {{}, {100}},
           .first = -1,
           .A_log = -4},
          {.name = "long_rows_by_runs_of_two",
           .B = 2,
           .T = 3100,
           .H = 10,
           .P = 64,
           .N = 128,
           .Q = 128,
           .starts = {{100, 255, 256, 3099}, {}},
           .first = -1,
           .A_log = -4}};
}
INSTANTIATE_TEST_SUITE_P(Runs, SsdBackwardGpu, testing::ValuesIn(fold_shapes()), name_of_shape);
INSTANTIATE_TEST_SUITE_P(Runs, SsdForwardGpu, testing::ValuesIn(fold_shapes()), name_of_shape);

// So many rows and heads that the forward is walks, of two heads a block or of three.
std::vector<SsdShape> walk_shapes() {
  return {
      {.name = "one_tile", .B = 24, .T = 64, .H = 8, .P = 64, .N = 128, .Q = 64, .first = -1},
      {.name = "few_tokens", .B = 24, .T = 7, .H = 8, .G = 4, .P = 64, .N = 128, .Q = 190},
      {.name = "chunks_of_128",
       .B = 24,
       .T = 200,
       .H = 8,
       .G = 2,
       .P = 64,
       .N = 128,
       .Q = 128,
       .starts = {{1, 64, 150}, {63, 128, 129, 199}, {170}, {15, 16, 17}},
       .first = -1},
      {.name = "chunks_of_256",
       .B = 12,
       .T = 270,
       .H = 16,
       .P = 64,
       .N = 128,
       .Q = 256,
       .starts = {{}, {65}, {260}},
       .first = -1,
       .A_log = -3},
      {.name = "decays_near_zero",
       .B = 24,
       .T = 150,
       .H = 8,
       .P = 64,
       .N = 128,
       .Q = 128,
       .starts = {{130}},
       .first = -1,
       .A_log = 3},
      {.name = "three_heads",
       .B = 20,
       .T = 140,
       .H = 18,
       .P = 64,
       .N = 128,
       .Q = 128,
       .starts = {{1, 64, 130}, {63, 128, 129}, {100}, {15, 16, 17, 139}},
       .first = -1},
      {.name = "one_head_left",
       .B = 12,
       .T = 70,
       .H = 26,
       .G = 2,
       .P = 64,
       .N = 128,
       .Q = 64,
       .starts = {{}, {65}},
       .first = -1,
       .A_log = -3},
      {.name = "two_heads_left_of_one_token", .B = 40, .T = 1, .H = 8, .P = 64, .N = 128, .Q = 64},
  };
}
INSTANTIATE_TEST_SUITE_P(Walk, SsdForwardGpu, testing::ValuesIn(walk_shapes()), name_of_shape);

// Rows so long, of so few heads, that the forward is walks over runs of chunks side by side, after
// a fold: of two heads a block and eight runs, the last of them shorter, and of three and five.
std::vector<SsdShape> run_walk_shapes() {
  const SsdShape two{.name = "two_heads",
                     .B = 2,
                     .T = 8310,
                     .H = 16,
                     .P = 64,
                     .N = 128,
                     .Q = 128,
                     .starts = {{}, {1, 1151, 1152, 3000, 8195}},
                     .first = -1,
                     .A_log = -5};
  SsdShape three = two;
  three.name = "three_heads", three.B = 8, three.T = 2420, three.H = 9, three.G = 3;
  three.starts = {{}, {1, 511, 512, 1300, 2305}};
  return {two, three};
}
class SsdForwardGpuRuns : public testing::TestWithParam<SsdShape> {};

// Which agree with the CPU, above; that takes too long for rows of this length.
TEST_P(SsdForwardGpuRuns, AgreesWithItsPartsOneByOne) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  const SsdShape& s = GetParam();
  const Device gpu{Device::Kind::cuda, 0};
  Side side(gpu, DType::bf16, DType::bf16, 3, size_t{128} << 20);
  const Inputs in = make_inputs(side, s, 8);
  const Dims ends{s.B, s.H, s.P, s.N}, row{s.B, s.H};
  const TensorView initial = side.stat_normal(ends);
  const auto nothing = [&](const Dims& dims) { return side.nothing(dims, side.stat()); };
  const TensorView added = nothing(ends), decay = nothing(row), final_state = nothing(ends);
  const TensorView y = side.nothing(in.x.dims, side.dtype());
  const auto run = [&](const TensorView& to) {
    const auto find = [&](const StateFold& fold) -> ConstTensorView {
      fold(added, decay);
      return initial;
    };
    ssd_forward(side.ctx(), {.x = in.x,
                             .B = in.B,
                             .C = in.C,
                             .dt = in.dt,
                             .cum = in.cum,
                             .D = in.D,
                             .doc_begin = in.doc_begin,
                             .find_initial = find,
                             .y = to,
                             .final_state = final_state,
                             .chunk = s.Q});
  };
  run(y);
  EnteringStates parts{.x = in.x,
                       .B = in.B,
                       .dt = in.dt,
                       .cum = in.cum,
                       .doc_begin = in.doc_begin,
                       .initial = initial,
                       .incoming = in.incoming,
                       .decay = nothing({s.B, num_chunks(s.T, s.Q), s.H}),
                       .final_state = nothing(ends),
                       .chunk = s.Q};
  entering_states(side.ctx(), parts);
  const TensorView expected = side.nothing(in.x.dims, side.dtype());
  chunk_scan_forward(side.ctx(), {.x = in.x,
                                  .B = in.B,
                                  .C = in.C,
                                  .dt = in.dt,
                                  .cum = in.cum,
                                  .D = in.D,
                                  .doc_begin = in.doc_begin,
                                  .incoming = in.incoming,
                                  .y = expected,
                                  .chunk = s.Q});
  const TensorView folded = nothing(ends), row_decay = nothing(row);
  fold_states(side.ctx(), parts, folded, row_decay);
  const auto expect_close = [&](const TensorView& got, const TensorView& wanted, double bound) {
    EXPECT_LE(error_by_norm(side.download(got), side.download(wanted)), bound);
  };
  expect_close(y, expected, 1e-2);
  expect_close(final_state, parts.final_state, 1e-5);
  expect_close(added, folded, 1e-5);
  expect_close(decay, row_decay, 1e-5);
  const TensorView again = side.nothing(in.x.dims, side.dtype());
  run(again);
  EXPECT_TRUE(side.download_elements(again) == side.download_elements(y)) << "other bits";
}
INSTANTIATE_TEST_SUITE_P(Walk, SsdForwardGpuRuns, testing::ValuesIn(run_walk_shapes()),
                         name_of_shape);

TEST(WalkSchedule, CutsLongRowsOfFewHeadsIntoRuns) {
  const auto of = [](const SsdShape& s) {
    return cuda::walk_schedule({s.B, s.T, s.H, s.P}, s.G, s.Q);
  };
  const std::vector<SsdShape> shapes = run_walk_shapes();
  EXPECT_EQ(of(shapes[0]).heads, 2);
  EXPECT_EQ(of(shapes[0]).runs, 8);
  EXPECT_EQ(of(shapes[1]).heads, 3);
  EXPECT_EQ(of(shapes[1]).runs, 5);
  for (const SsdShape& shape : walk_shapes()) EXPECT_EQ(of(shape).runs, 1) << shape.name;
  EXPECT_EQ(of({.B = 1, .T = 16384, .H = 64, .Q = 128}).runs, 4);
  EXPECT_EQ(of({.B = 4, .T = 4096, .H = 64, .Q = 128}).runs, 1);
}

// The least work of each kernel: whole chunks; more heads of a block than are in shared memory at a
// time, which takes as many heads as fill a GPU.
GpuBounds least(const SsdShape& shape) {
  return {.arena_bytes = size_t{48} << 20, .in_f32 = shape.P < 64, .least = true};
}

class ChunkScanGpuLeast : public testing::TestWithParam<SsdShape> {};
TEST_P(ChunkScanGpuLeast, AgreesWithCpu) {
  check_on_gpu([](Side& side) { run(side, GetParam(), 8); }, least(GetParam()));
}

class SsdBackwardGpuLeast : public testing::TestWithParam<SsdShape> {};
TEST_P(SsdBackwardGpuLeast, AgreesWithCpu) {
  check_on_gpu([](Side& side) { run_whole_backward(side, GetParam(), 8, Ends::found); },
               least(GetParam()));
}

class SsdForwardGpuLeast : public testing::TestWithParam<SsdShape> {};
TEST_P(SsdForwardGpuLeast, AgreesWithCpu) {
  check_on_gpu([](Side& side) { run_whole_forward(side, GetParam(), 8, Ends::found); },
               least(GetParam()));
}

std::vector<SsdShape> least_shapes() {
  const int64_t P = 64, N = 128, heads = 134;
  return {
      {.name = "plain", .T = 5, .H = 2, .P = 3, .N = 4, .Q = 3, .first = -1},
      {.name = "chunk_of_128",
       .T = 150,
       .H = 2,
       .P = P,
       .N = N,
       .Q = 128,
       .starts = {{37, 140}},
       .first = -1},
      {.name = "chunk_of_256", .T = 270, .P = P, .N = N, .Q = 256, .starts = {{90}}, .first = -1},
      {.name = "heads_of_128_tokens", .T = 64, .H = heads, .P = P, .N = N, .Q = 16, .first = -1},
      {.name = "heads_of_256_tokens", .B = 2, .T = 20, .H = heads, .P = P, .N = N, .Q = 140},
  };
}
std::vector<SsdShape> least_shapes_of_64_states() {
  return {{.name = "chunk_of_128", .T = 130, .P = 64, .N = 64, .Q = 128, .first = -1},
          {.name = "chunk_of_256", .T = 200, .P = 64, .N = 64, .Q = 200, .first = -1}};
}
INSTANTIATE_TEST_SUITE_P(Shapes, ChunkScanGpuLeast, testing::ValuesIn(least_shapes()),
                         name_of_shape);
INSTANTIATE_TEST_SUITE_P(States64, ChunkScanGpuLeast,
                         testing::ValuesIn(least_shapes_of_64_states()), name_of_shape);
INSTANTIATE_TEST_SUITE_P(Shapes, SsdBackwardGpuLeast, testing::ValuesIn(least_shapes()),
                         name_of_shape);
INSTANTIATE_TEST_SUITE_P(Walk, SsdForwardGpuLeast,
                         testing::Values(SsdShape{.name = "two_heads_a_block",
                                                  .T = 270,
                                                  .H = 118,
                                                  .P = 64,
                                                  .N = 128,
                                                  .Q = 128,
                                                  .starts = {{70}},
                                                  .first = -1},
                                         SsdShape{.name = "three_heads_a_block",
                                                  .T = 270,
                                                  .H = 268,
                                                  .P = 64,
                                                  .N = 128,
                                                  .Q = 256,
                                                  .starts = {{70}},
                                                  .first = -1}),
                         name_of_shape);

}  // namespace
}  // namespace sluice::test
