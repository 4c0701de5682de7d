#include "kernels/attention/attention.h"

#include "tests/support/gpu_twin.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

struct AttentionShape {
  const char* name = "";
  int64_t B = 1, T = 1, S = 0, Hq = 1, Hkv = 1, hd = 1;  // S = 0: as many keys as queries see
  int64_t query_begin = 0, window = 0;
  std::vector<std::vector<int64_t>> starts = {};
  int64_t first = 0;
  double scale = 0;
  int64_t padding = 0;  // of rows
  AttentionBackend backend = AttentionBackend::own;
};

// q is a row of its own; k and v are slices of one.
struct Inputs {
  Inputs(Side& side, const AttentionShape& a)
      : S(a.S > 0 ? a.S : a.T + a.query_begin),
        q(side.normal({a.B, a.T, a.Hq, a.hd}, 1, 0, a.padding)),
        kv(side.normal({a.B, S, 2 * a.Hkv * a.hd}, 1, 0, a.padding)),
        doc_begin(side.copy_of(documents(a.B, a.T, a.starts, a.first))) {}
  int64_t S;
  TensorView q, kv, doc_begin;
};
TensorView half(const TensorView& kv, const AttentionShape& a, int64_t index) {
  return kv.columns(index * a.Hkv * a.hd, {a.Hkv, a.hd});
}

void backward(Side& side, const AttentionShape& a, const Inputs& in, const TensorView& y,
              const TensorView& lse, const TensorView& dq, bool add_to_dq) {
  const TensorView dkv =
      side.output(add_to_dq ? "dkv of merged" : "dkv", in.kv.dims, side.dtype(), a.padding);
  attention_backward(side.ctx(), {.dy = side.normal(y.dims, 1, 0, a.padding),
                                  .q = in.q,
                                  .k = half(in.kv, a, 0),
                                  .v = half(in.kv, a, 1),
                                  .doc_begin = in.doc_begin,
                                  .y = y,
                                  .lse = lse,
                                  .dq = dq,
                                  .dk = half(dkv, a, 0),
                                  .dv = half(dkv, a, 1),
                                  .query_begin = a.query_begin,
                                  .window = a.window,
                                  .scale = a.scale,
                                  .backend = a.backend,
                                  .add_to_dq = add_to_dq});
}

// Forward and backward of these keys alone; then merged with the result over others, and the
// backward of that. lse is compared as merged: alone, it may be infinite.
void run(Side& side, const AttentionShape& a) {
  const Inputs in(side, a);
  const TensorView y = side.output("y", in.q.dims, side.dtype(), a.padding);
  const TensorView lse = side.stat_normal({a.B, a.T, a.Hq});
  attention_forward(side.ctx(), {.q = in.q,
                                 .k = half(in.kv, a, 0),
                                 .v = half(in.kv, a, 1),
                                 .doc_begin = in.doc_begin,
                                 .y = y,
                                 .lse = lse,
                                 .query_begin = a.query_begin,
                                 .window = a.window,
                                 .scale = a.scale,
                                 .backend = a.backend});
  backward(side, a, in, y, lse, side.output("dq", in.q.dims, side.dtype(), a.padding), false);
  const TensorView merged = side.compare("merged y", side.normal(y.dims, 1, 0, a.padding));
  const TensorView merged_lse = side.compare("merged lse", side.stat_normal(lse.dims));
  attention_merge(side.ctx(), {.part_y = y, .part_lse = lse, .y = merged, .lse = merged_lse});
  backward(side, a, in, merged, merged_lse,
           side.compare("dq of merged", side.normal(y.dims, 1, 0, a.padding)), true);
}

class AttentionGpu : public testing::TestWithParam<AttentionShape> {};

TEST_P(AttentionGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) { run(side, GetParam()); }, {.arena_bytes = size_t{1} << 20});
}

std::vector<AttentionShape> odd_shapes() {
  return {
      {.name = "one_token_of_many_keys",
       .B = 2,
       .Hq = 4,
       .Hkv = 2,
       .hd = 8,
       .query_begin = 70,
       .first = -100},
      {.name = "primes", .B = 2, .T = 13, .Hq = 3, .Hkv = 1, .hd = 7},
      {.name = "several_tiles", .T = 131, .Hq = 4, .Hkv = 2, .hd = 5},
      {.name = "odd_rows", .B = 2, .T = 70, .Hq = 2, .Hkv = 1, .hd = 64, .padding = 3},
      {.name = "head_dim_80", .T = 150, .Hq = 2, .hd = 80},
      {.name = "head_dim_160", .T = 90, .Hq = 2, .hd = 160, .window = 40},
      {.name = "head_dim_257", .T = 70, .Hq = 2, .hd = 257},
      {.name = "negative_scale", .T = 100, .Hq = 2, .hd = 64, .scale = -0.1},
      {.name = "own_scale", .T = 100, .Hq = 2, .hd = 64, .scale = 0.2},
  };
}
INSTANTIATE_TEST_SUITE_P(Odd, AttentionGpu, testing::ValuesIn(odd_shapes()),
                         [](const auto& info) { return std::string(info.param.name); });

// Of each mask, at the given head dim.
std::vector<AttentionShape> masks(int64_t hd) {
  std::vector<AttentionShape> shapes = {
      {.name = "rows_of_a_model", .B = 2, .T = 300, .Hq = 4, .Hkv = 2, .padding = 64},
      {.name = "exact_tiles", .T = 256, .Hq = 2, .Hkv = 2},
      {.name = "one_key_over", .T = 257, .Hq = 1},
      {.name = "short", .B = 3, .T = 17, .Hq = 2, .Hkv = 1},
      {.name = "window", .B = 2, .T = 450, .Hq = 2, .Hkv = 1, .window = 130},
      {.name = "small_window", .T = 280, .Hq = 2, .window = 5},
      {.name = "documents",
       .B = 2,
       .T = 420,
       .Hq = 2,
       .Hkv = 1,
       .starts = {{1, 3, 64, 100, 128, 255, 390}, {63, 65, 128, 300}},
       .first = -3},
      {.name = "documents_and_window", .T = 390, .Hq = 2, .window = 70, .starts = {{10, 64, 200}}},
      {.name = "later_queries",
       .T = 270,
       .Hq = 4,
       .Hkv = 1,
       .query_begin = 67,
       .starts = {{20}},
       .first = -50},
      {.name = "keys_nobody_sees",
       .T = 50,
       .S = 450,
       .Hq = 2,
       .query_begin = 270,
       .window = 30,
       .first = -1000},
      {.name = "keys_before",
       .B = 2,
       .T = 270,
       .S = 167,
       .Hq = 4,
       .Hkv = 2,
       .query_begin = 167,
       .first = -300},
      {.name = "keys_far_before", .T = 5, .S = 3, .Hq = 2, .query_begin = 200, .first = -300},
      {.name = "keys_leave_the_window",
       .T = 290,
       .S = 200,
       .Hq = 2,
       .query_begin = 202,
       .window = 140,
       .first = -1000},
      {.name = "keys_of_the_document_before",
       .B = 2,
       .T = 270,
       .S = 166,
       .Hq = 2,
       .query_begin = 166,
       .starts = {{5}, {64, 65}},
       .first = -130},
      {.name = "keys_after_some_queries", .T = 300, .S = 170, .Hq = 2, .query_begin = -166},
      {.name = "longer", .T = 1500, .Hq = 2, .Hkv = 1, .starts = {{600}}},
  };
  for (AttentionShape& shape : shapes) shape.hd = hd;
  return shapes;
}
INSTANTIATE_TEST_SUITE_P(HeadDim64, AttentionGpu, testing::ValuesIn(masks(64)),
                         [](const auto& info) { return std::string(info.param.name); });
INSTANTIATE_TEST_SUITE_P(HeadDim128, AttentionGpu, testing::ValuesIn(masks(128)),
                         [](const auto& info) { return std::string(info.param.name); });

// Least work: two tiles of the plain kernels; then, on tensor cores, more tiles of keys and of
// queries than are in shared memory at a time, and every mask.
class AttentionGpuLeast : public testing::TestWithParam<AttentionShape> {};

TEST_P(AttentionGpuLeast, AgreesWithCpu) {
  const bool plain = GetParam().hd < 64;
  check_on_gpu([](Side& side) { run(side, GetParam()); },
               {.arena_bytes = size_t{1} << 20, .in_f32 = plain, .least = true});
}

std::vector<AttentionShape> least_shapes(int64_t hd) {
  std::vector<AttentionShape> shapes = {
      {.name = "many_keys", .T = 20, .S = 560, .query_begin = 540, .first = -1},
      {.name = "many_queries", .T = 300, .S = 20, .Hq = 2, .Hkv = 1},
      {.name = "masks", .T = 200, .Hq = 2, .window = 70, .starts = {{10, 150}}}};
  for (AttentionShape& shape : shapes) shape.hd = hd;
  return shapes;
}
INSTANTIATE_TEST_SUITE_P(Plain, AttentionGpuLeast,
                         testing::Values(AttentionShape{.name = "plain", .T = 70, .hd = 5}),
                         [](const auto& info) { return std::string(info.param.name); });
INSTANTIATE_TEST_SUITE_P(HeadDim64, AttentionGpuLeast, testing::ValuesIn(least_shapes(64)),
                         [](const auto& info) { return std::string(info.param.name); });
INSTANTIATE_TEST_SUITE_P(HeadDim128, AttentionGpuLeast, testing::ValuesIn(least_shapes(128)),
                         [](const auto& info) { return std::string(info.param.name); });

// What no query sees has no gradient, and what sees nothing is 0 and weighs nothing.
TEST(AttentionGpuEdges, NothingSeen) {
  check_on_gpu([](Side& side) {
    run(side, {.T = 100, .S = 70, .Hq = 2, .hd = 64, .query_begin = -100});
    run(side, {.T = 100, .S = 70, .Hq = 2, .hd = 64, .query_begin = 70});
  });
}

TEST(AttentionGpuEdges, ForwardAlone) {
  check_on_gpu([](Side& side) {
    const TensorView q = side.normal({2, 150, 2, 128}), kv = side.normal(q.dims);
    attention_forward(side.ctx(), {.q = q,
                                   .k = kv,
                                   .v = kv,
                                   .doc_begin = side.copy_of(documents(2, 150)),
                                   .y = side.output("y", q.dims, side.dtype())});
  });
}

TEST(AttentionGpuEdges, LargeScoresStayFinite) {
  check_on_gpu(
      [](Side& side) {
        const TensorView q = side.normal({1, 200, 2, 64}, 30), kv = side.normal(q.dims, 1);
        attention_forward(side.ctx(), {.q = q,
                                       .k = kv,
                                       .v = kv,
                                       .doc_begin = side.copy_of(documents(1, 200)),
                                       .y = side.output("y", q.dims, side.dtype()),
                                       .lse = side.output("lse", {1, 200, 2}, side.stat())});
      },
      {.f32 = 1e-4});
}

}  // namespace
}  // namespace sluice::test
