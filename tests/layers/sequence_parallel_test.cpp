// Mamba and Mamba-2 with their rows cut over sequence ranks, against one rank that has them whole.
// B batch, T tokens on a rank, D model
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "layers/mixers/mamba.h"
#include "layers/mixers/mamba2.h"
#include "parallel/planned_communicator.h"
#include "tests/parallel/delayed_communicator.h"
#include "tests/support/sharded_layer.h"

namespace sluice::test {
namespace {

constexpr int64_t D = 6;

template <class Mixer>
MakeLayer sharded(const typename Mixer::Config& config) {
  return [config](const LayerBuild& build) { return std::make_unique<Mixer>(build, config); };
}

struct Kind {
  const char* name = "";
  MakeLayer make = {};
};

std::vector<Kind> kinds() {
  const Mamba2Config mamba2{.head_dim = 4, .state_dim = 3, .conv_width = 4, .chunk = 4};
  Mamba2Config grouped = mamba2;
  grouped.groups = 3;
  grouped.gate = GateOrder::after;
  grouped.proj_bias = true;
  grouped.conv_width = 2;
  grouped.chunk = 3;
  grouped.dt_min = 0.02;
  Mamba2Config fast = mamba2;  // decays far below 1; and no convolution to speak of
  fast.dt_init_min = fast.dt_init_max = 0.7;
  fast.conv_width = 1;
  fast.conv_bias = false;
  fast.chunk = 64;
  const MambaConfig mamba{.state_dim = 3, .conv_width = 4, .dt_rank = 2};
  MambaConfig learned = mamba;
  learned.inner_norm = InnerNorm::learned;
  learned.proj_bias = true;
  learned.inner = 7;
  learned.conv_width = 3;
  MambaConfig plain = mamba;
  plain.inner_norm = InnerNorm::plain;
  plain.dt_init_min = plain.dt_init_max = 0.7;
  plain.conv_bias = false;
  return {{"mamba2", sharded<Mamba2>(mamba2)},
          {"mamba2_groups", sharded<Mamba2>(grouped)},
          {"mamba2_fast_decay", sharded<Mamba2>(fast)},
          {"mamba", sharded<Mamba>(mamba)},
          {"mamba_learned_norms", sharded<Mamba>(learned)},
          {"mamba_fast_decay", sharded<Mamba>(plain)}};
}

struct Cut {
  const char* name = "";
  std::vector<int64_t> cuts = {};
  std::vector<std::vector<int64_t>> starts = {};
};

std::vector<Cut> cut_cases() {
  return {
      {"one_rank", {0, 13}, {{5}, {}}},
      {"one_document", even_cuts(23, 2)},
      {"document_of_many_shards", even_cuts(26, 8), {{2, 21}, {}}},
      {"documents_inside_shards", even_cuts(23, 3), {{3, 4, 12}, {19}}},
      {"documents_at_edges", even_cuts(20, 5), {{4, 8, 12, 16}, {8}}},
      {"documents_beside_edges", even_cuts(20, 5), {{3, 5, 11, 17}, {7, 8, 9}}},
      {"tokens_of_their_own", even_cuts(8, 8), {{}, {3, 4}}},
      {"uneven", {0, 1, 2, 9, 10, 24}, {{9}, {1, 10, 23}}},
      {"one_token_last", {0, 11, 12}, {{11}, {}}},
  };
}

class Sharded : public testing::TestWithParam<std::tuple<Kind, Cut>> {};
INSTANTIATE_TEST_SUITE_P(
    Layers, Sharded, testing::Combine(testing::ValuesIn(kinds()), testing::ValuesIn(cut_cases())),
    [](const auto& info) {
      return concat(std::get<0>(info.param).name, "_", std::get<1>(info.param).name);
    });

TEST_P(Sharded, EqualsOneRank) {
  const auto& [kind, cut] = GetParam();
  const int64_t tokens = cut.cuts.back();
  const TestRows batch(2, tokens, cut.starts);
  for (const DType dtype : {DType::f64, DType::f32}) {
    const double bound = dtype == DType::f64 ? 1e-10 : 2e-5;
    const LayerResult whole = run_sharded(kind.make, batch, {0, tokens}, D, dtype);
    const LayerResult parts = run_sharded(kind.make, batch, cut.cuts, D, dtype);
    EXPECT_LE(relative_error(parts.y, whole.y), bound);
    EXPECT_LE(relative_error(parts.dx, whole.dx), bound);
    expect_equal(parts.gradients, whole.gradients, bound);
    const LayerResult again = run_sharded(kind.make, batch, cut.cuts, D, dtype);
    EXPECT_TRUE(bit_equal(again.y, parts.y) && bit_equal(again.dx, parts.dx));
    expect_equal(again.gradients, parts.gradients, 0);
  }
}

// ---- What travels -------------------------------------------------------------------------------

struct Bytes {
  int64_t state = 0, halo = 0;
};

// Contributed by the rank since `before`.
Bytes contributed(const Communicator& group, const Bytes& before = {}) {
  return {group.traffic(Verb::all_gather).contributed - before.state,
          group.traffic(Verb::all_to_all_v).contributed - before.halo};
}

// `forward` and `backward` are the state's bytes of a row, `halo` the halo's.
void expect_bytes(const MakeLayer& make, int64_t forward, int64_t backward, int64_t halo) {
  constexpr int64_t B = 2;
  const TestRows batch(B, 40, {{13}, {}});
  for (const int ranks : {2, 4}) {
    run_ranks(ranks, [&](Communicator& group) {
      const int rank = group.rank();
      const ShardRows shard(batch, {0, B}, even_cuts(40, ranks), rank);
      const Dims dims{B, 40 / ranks, D};
      const Tensor x = normal(dims, DType::f32, 1);
      Tensor y(dims, DType::f32), dx(dims, DType::f32);
      LayerHarness h = sharded_harness(make, group, D, DType::f32);
      const auto saved = h.layer->forward(h.ctx, shard, {.x = x, .y = y});
      const Bytes there = contributed(group);
      EXPECT_EQ(there.state, B * forward);
      EXPECT_EQ(there.halo, rank + 1 < ranks ? B * halo : 0);  // the last rank has no reader
      h.layer->backward(h.ctx, shard, {.dy = x, .dx = dx}, *saved);
      const Bytes back = contributed(group, there);
      EXPECT_EQ(back.state, B * backward);
      EXPECT_EQ(back.halo, rank > 0 ? B * halo : 0);
    });
  }
}

TEST(SequenceTraffic, OfMamba2) {
  const int64_t H = 3, P = 4, N = 5, G = 1, K = 4, C = H * P + 2 * G * N;
  expect_bytes(sharded<Mamba2>({.head_dim = P, .state_dim = N, .conv_width = K, .chunk = 4}),
               4 * H * P * N + 4 * H, 4 * H * P * N, 4 * (K - 1) * C);
}

TEST(SequenceTraffic, OfMamba) {
  const int64_t E = 12, N = 5, K = 4;
  expect_bytes(sharded<Mamba>({.state_dim = N, .conv_width = K}), 4 * E * (N + 1), 4 * E * N,
               4 * (K - 1) * E);
}

// The counting twin with a planned group sees the peaks and the bytes of the real ranks.
TEST(SequenceTraffic, IsPlannedExactly) {
  constexpr int64_t B = 2, tokens = 19;
  const TestRows batch(B, tokens, {{4}, {}});
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    run_ranks(3, [&](Communicator& group) {
      const ShardRows shard(batch, {0, B}, even_cuts(tokens, 3), group.rank());
      const Dims dims{B, shard.rows().tokens, D};
      const Tensor x = normal(dims, DType::f32, 1);
      Tensor y(dims, DType::f32), dx(dims, DType::f32);
      const auto pass = [&](LayerHarness& h, const Context& ctx) {
        const auto saved = h.layer->forward(ctx, shard, {.x = x, .y = y});
        h.layer->backward(ctx, shard, {.dy = x, .dx = dx}, *saved);
      };
      LayerHarness real = sharded_harness(kind.make, group, D, DType::f32);
      pass(real, real.ctx);
      const auto planned_group = make_planned_communicator(3, group.rank());
      LayerHarness planned = sharded_harness(kind.make, *planned_group, D, DType::f32);
      Arena saved = Arena::counting("saved", kCpu), scratch = Arena::counting("scratch", kCpu);
      pass(planned,
           {.device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}});
      EXPECT_EQ(saved.peak(), real.ctx.saved().peak());
      EXPECT_EQ(scratch.peak(), real.ctx.scratch().peak());
      for (const Verb verb : {Verb::all_gather, Verb::all_to_all_v}) {
        EXPECT_EQ(planned_group->traffic(verb), group.traffic(verb)) << name_of(verb);
      }
    });
  }
}

// ---- What is done meanwhile ---------------------------------------------------------------------

// A number that is there before a rank waits for its `wait`-th exchange by `verb`: work that the
// exchange hides behind has written it.
struct Written {
  const char* what = "";
  Verb verb = Verb::all_gather;
  int wait = 0;
  int64_t kept = -1;      // element of what the forward keeps first, the projection of x
  int64_t gradient = -1;  // or of the gradient of `weight`
  const char* weight = "in_proj";
};

void expect_work_before_waits(const MakeLayer& make, const std::vector<Written>& all) {
  constexpr int64_t B = 2, T = 5;
  const TestRows batch(B, 2 * T);
  run_ranks(2, [&](Communicator& group) {
    std::function<void(Verb)> look;
    DelayedCommunicator watched(
        group, [](Verb) {}, [](Verb) {}, [&](Verb verb) { look(verb); });
    LayerHarness h = sharded_harness(make, watched, D, DType::f32);
    TensorView projected;  // where the first tensor will lie
    {
      const ArenaScope scope(h.ctx.saved());
      projected = h.ctx.saved().alloc({1000}, DType::f32);
    }
    std::fill_n(projected.as<float>(), 1000, std::nanf(""));
    const auto gradient = [&](const char* weight) {
      return h.store.grad(h.store.find(concat("branches.0.layer.", weight, ".weight")));
    };
    std::map<Verb, int> waits;
    size_t seen = 0;
    look = [&](Verb verb) {
      const int wait = waits[verb]++;
      for (const Written& written : all) {
        if (written.verb != verb || written.wait != wait) continue;
        ++seen;
        if (written.kept >= 0) {
          EXPECT_FALSE(std::isnan(projected.as<float>()[written.kept])) << written.what;
        }
        if (written.gradient >= 0) {
          EXPECT_NE(gradient(written.weight).as<float>()[written.gradient], 0) << written.what;
        }
      }
    };
    const ShardRows shard(batch, {0, B}, even_cuts(2 * T, 2), group.rank());
    const Tensor x = normal({B, T, D}, DType::f32, 1);
    Tensor y(x.dims(), DType::f32), dx(x.dims(), DType::f32);
    const auto saved = h.layer->forward(h.ctx, shard, {.x = x, .y = y});
    h.layer->backward(h.ctx, shard, {.dy = x, .dx = dx}, *saved);
    EXPECT_EQ(seen, all.size());
  });
}

TEST(SequenceOverlap, OfMamba2) {
  expect_work_before_waits(
      sharded<Mamba2>({.head_dim = 4, .state_dim = 3, .conv_width = 4, .chunk = 4}),
      {{.what = "z, while the state travels", .kept = 0},
       {.what = "z's weight, while the state's gradient travels", .wait = 1, .gradient = 0},
       {.what = "out_proj's weight, while the halo's gradient travels",
        .verb = Verb::all_to_all_v,
        .wait = 1,
        .gradient = 0,
        .weight = "out_proj"}});
}

TEST(SequenceOverlap, OfMamba) {
  const int64_t E = 2 * D;
  expect_work_before_waits(
      sharded<Mamba>({.state_dim = 3, .conv_width = 4}),
      {{.what = "a half of z, while the halo travels", .verb = Verb::all_to_all_v, .kept = E},
       {.what = "the other half, while the state travels", .kept = E + E / 2},
       {.what = "z's weight, while the halo's gradient travels",
        .verb = Verb::all_to_all_v,
        .wait = 1,
        .gradient = E * D}});
}

}  // namespace
}  // namespace sluice::test
