// Attention whose rows lie on several ranks, against one rank that has them whole.
#include <gtest/gtest.h>

#include <atomic>

#include "layers/mixers/attention.h"
#include "layers/model.h"
#include "layers/recompute.h"
#include "parallel/planned_communicator.h"
#include "tests/parallel/delayed_communicator.h"
#include "tests/support/errors.h"
#include "tests/support/sharded_layer.h"

namespace sluice::test {
namespace {

constexpr size_t kArena = size_t{1} << 20;

double bound_of(DType dtype) { return dtype == DType::f64 ? 1e-10 : 2e-5; }

// ---- The scores alone, each way of exchanging forced --------------------------------------------

struct ScoresCase {
  const char* name = "";
  int ranks = 1;
  int64_t B = 1, S = 1;
  AttentionShape shape = {};
  std::vector<std::vector<int64_t>> starts = {};
};

std::vector<ScoresCase> scores_cases() {
  const AttentionShape mha{.Hq = 4, .Hkv = 4, .hd = 3}, gqa{.Hq = 8, .Hkv = 2, .hd = 4};
  const AttentionShape mqa{.Hq = 8, .Hkv = 1, .hd = 2}, odd{.Hq = 3, .Hkv = 3, .hd = 5};
  const auto with_window = [](AttentionShape shape, int64_t window) {
    shape.window = window;
    return shape;
  };
  return {
      {.name = "two_ranks", .ranks = 2, .B = 2, .S = 9, .shape = mha},
      {.name = "one_token_a_rank", .ranks = 4, .B = 2, .S = 4, .shape = mha},
      {.name = "uneven_with_one_token", .ranks = 4, .S = 5, .shape = gqa, .starts = {{3}}},
      {.name = "kv_heads_divide", .ranks = 2, .S = 13, .shape = gqa, .starts = {{4, 7}}},
      {.name = "kv_heads_are_copied", .ranks = 4, .B = 2, .S = 18, .shape = gqa, .starts = {{5}}},
      {.name = "a_head_each_of_one", .ranks = 8, .B = 2, .S = 21, .shape = mqa, .starts = {{9}}},
      {.name = "three_ranks", .ranks = 3, .B = 2, .S = 10, .shape = odd, .starts = {{}, {2, 8}}},
      {.name = "documents_begin_at_edges",
       .ranks = 4,
       .B = 2,
       .S = 16,
       .shape = mha,
       .starts = {{4, 8, 12}, {3, 4, 5}}},
      {.name = "document_of_three_shards", .ranks = 8, .S = 24, .shape = gqa, .starts = {{2, 14}}},
      {.name = "window_in_a_shard",
       .ranks = 2,
       .B = 2,
       .S = 40,
       .shape = with_window(gqa, 5),
       .starts = {{19, 23}}},
      {.name = "window_of_one", .ranks = 2, .S = 8, .shape = with_window(mha, 1)},
      {.name = "window_of_two_shards",
       .ranks = 4,
       .B = 2,
       .S = 22,
       .shape = with_window(mha, 9),
       .starts = {{7}}},
      {.name = "window_longer_than_the_row", .ranks = 4, .S = 12, .shape = with_window(mha, 50)},
      {.name = "several_tiles",
       .ranks = 2,
       .S = 270,
       .shape = with_window(mha, 150),
       .starts = {{100, 135, 200}}},
  };
}

using MakeScores =
    std::function<std::unique_ptr<AttentionScores>(const AttentionShape&, Communicator&)>;

struct ScoresResult {
  Tensor y, dqkv;
};

// y and dqkv of a batch on `c.ranks` ranks.
ScoresResult run_scores(const ScoresCase& c, int ranks, DType dtype, const MakeScores& make) {
  const Dims in{c.B, c.S, c.shape.columns()}, out{c.B, c.S, c.shape.Hq, c.shape.hd};
  const TestRows rows(c.B, c.S, c.starts);
  const Tensor qkv = normal(in, dtype, 1), dy = normal(out, dtype, 2);
  ScoresResult result{Tensor(out, dtype), Tensor(in, dtype)};
  run_layout({.cp = ranks}, [&](const Mesh& mesh) {
    const ShardRows shard(rows, mesh);
    const auto scores = make(c.shape, mesh.axis(Axis::cp));
    TestContext ctx(kArena);
    const Tensor my_qkv = shard.cut(qkv), my_dy = shard.cut(dy);
    Tensor y(my_dy.dims(), dtype), dqkv(my_qkv.dims(), dtype);
    const auto saved = scores->forward(ctx, shard, my_qkv, y);
    Tensor kept = my_qkv.clone();
    if (!scores->keeps_projection()) kept.poison();
    int meanwhile = 0;
    scores->backward(
        ctx, shard,
        {.dy = my_dy, .qkv = kept, .y = y, .dqkv = dqkv, .meanwhile = [&] { ++meanwhile; }},
        *saved);
    EXPECT_EQ(meanwhile, 1);
    EXPECT_EQ(ctx.scratch().used(), 0u);
    shard.paste(y, result.y);
    shard.paste(dqkv, result.dqkv);
  });
  return result;
}

std::unique_ptr<AttentionScores> here(const AttentionShape& shape, Communicator&) {
  return attention_here(shape);
}

class AttentionOverRanks : public testing::TestWithParam<ScoresCase> {
 protected:
  void compare(const MakeScores& make) {
    const ScoresCase& c = GetParam();
    for (const DType dtype : {DType::f64, DType::f32}) {
      const ScoresResult whole = run_scores(c, 1, dtype, here);
      const ScoresResult parts = run_scores(c, c.ranks, dtype, make);
      EXPECT_LE(relative_error(parts.y, whole.y), bound_of(dtype));
      EXPECT_LE(relative_error(parts.dqkv, whole.dqkv), bound_of(dtype));
      const ScoresResult again = run_scores(c, c.ranks, dtype, make);
      EXPECT_TRUE(bit_equal(again.y, parts.y) && bit_equal(again.dqkv, parts.dqkv));
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Cases, AttentionOverRanks, testing::ValuesIn(scores_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(AttentionOverRanks, ByHeadsEqualsOneRank) {
  ASSERT_TRUE(heads_divide(GetParam().shape, GetParam().ranks));
  compare(attention_by_heads);
}

TEST_P(AttentionOverRanks, ByKeysEqualsOneRank) { compare(attention_by_keys); }

// Heads are not touched by which rank computes them: not even bits differ.
TEST(AttentionByHeads, ForwardHasTheBitsOfOneRank) {
  const ScoresCase c{.ranks = 4, .B = 2, .S = 70, .shape = {.Hq = 8, .Hkv = 2, .hd = 4}};
  const ScoresResult whole = run_scores(c, 1, DType::f32, here);
  EXPECT_TRUE(bit_equal(run_scores(c, 4, DType::f32, attention_by_heads).y, whole.y));
}

// The gradient of the output projection's weight hides the first exchange of the backward.
TEST(AttentionByHeads, WorksWhileTheExchangeIsUnderWay) {
  const AttentionShape shape{.Hq = 2, .Hkv = 2, .hd = 4};
  run_layout({.cp = 2}, [&](const Mesh& mesh) {
    const TestRows rows(2, 6);
    const ShardRows shard(rows, mesh);
    std::atomic<bool> worked = false;
    // Verbs 0 and 1 are those of qkv and y in the forward.
    HeldVerbs group(mesh.axis(Axis::cp), [&](int verb) { return verb != 2 || worked; });
    const auto scores = attention_by_heads(shape, group);
    TestContext ctx(kArena);
    const Tensor qkv = normal({2, 3, shape.columns()}, DType::f32, 1);
    const Tensor dy = normal({2, 3, 2, 4}, DType::f32, 2);
    Tensor y(dy.dims(), DType::f32), dqkv(qkv.dims(), DType::f32);
    const auto saved = scores->forward(ctx, shard, qkv, y);
    scores->backward(
        ctx, shard,
        {.dy = dy, .qkv = qkv, .y = y, .dqkv = dqkv, .meanwhile = [&] { worked = true; }}, *saved);
    EXPECT_EQ(group.done(), 4);
    EXPECT_EQ(group.late(), 0);
  });
}

TEST(AttentionChoice, IsThatOfTheHeads) {
  const auto divide = [](int64_t Hq, int64_t Hkv, int ranks) {
    return heads_divide({.Hq = Hq, .Hkv = Hkv, .hd = 4}, ranks);
  };
  EXPECT_TRUE(divide(8, 8, 4));
  EXPECT_TRUE(divide(8, 4, 4));
  EXPECT_TRUE(divide(8, 2, 4));  // each key-value head on two ranks
  EXPECT_TRUE(divide(12, 1, 6));
  EXPECT_FALSE(divide(12, 4, 8));  // query heads do not divide
  EXPECT_FALSE(divide(12, 4, 6));  // a rank's queries would read two key-value heads
  EXPECT_FALSE(divide(3, 3, 2));
  EXPECT_EQ(make_attention_scores({.Hq = 4, .Hkv = 2, .hd = 4}, nullptr)->describe(), "");
  run_layout({.cp = 2}, [&](const Mesh& mesh) {
    Communicator& group = mesh.axis(Axis::cp);
    const auto text = [&](int64_t Hq, int64_t Hkv) {
      return make_attention_scores({.Hq = Hq, .Hkv = Hkv, .hd = 4}, &group)->describe();
    };
    EXPECT_EQ(text(4, 2),
              "all-to-all over 2 ranks, each with 2 of 4 query heads and 1 of 2 key-value heads");
    EXPECT_EQ(text(3, 1),
              "keys and values on a ring over 2 ranks, 3 query and 1 key-value heads on each");
    EXPECT_THROW(attention_by_heads({.Hq = 3, .Hkv = 1, .hd = 4}, group), Error);
  });
}

// ---- The layer ----------------------------------------------------------------------------------

struct LayerCase {
  const char* name = "";
  int ranks = 1;
  int64_t B = 1, S = 1, heads = 4, kv_heads = 2, window = 0;
  double rope = 1;
  bool bias = false, recompute = false;
  std::vector<std::vector<int64_t>> starts = {};
};

std::vector<LayerCase> layer_cases() {
  return {
      {.name = "heads", .ranks = 2, .B = 2, .S = 13, .starts = {{5, 6}, {1, 12}}},
      {.name = "copied_heads", .ranks = 4, .B = 2, .S = 18, .bias = true, .starts = {{4, 13}}},
      {.name = "keys", .ranks = 3, .B = 2, .S = 13, .rope = 0.5, .starts = {{5, 6}, {1, 12}}},
      {.name = "keys_and_window", .ranks = 5, .S = 23, .window = 7, .starts = {{9}}},
      {.name = "heads_and_window", .ranks = 2, .S = 23, .window = 7, .rope = 0, .starts = {{9}}},
      {.name = "eight_ranks", .ranks = 8, .S = 8, .heads = 4, .kv_heads = 4, .bias = true},
      {.name = "eight_ranks_by_heads", .ranks = 8, .S = 19, .heads = 8, .kv_heads = 2},
      {.name = "heads_recomputed", .ranks = 4, .S = 11, .recompute = true, .starts = {{3}}},
      {.name = "keys_recomputed", .ranks = 3, .S = 11, .recompute = true, .starts = {{3}}},
  };
}

constexpr int64_t kWidth = 6;

MakeLayer maker(const LayerCase& c) {
  return [&](const LayerBuild& build) -> std::unique_ptr<Layer> {
    AttentionConfig config;
    config.heads = c.heads;
    config.kv_heads = c.kv_heads;
    config.head_dim = 4;
    config.window = c.window;
    config.bias = c.bias;
    config.rope.fraction = c.rope;
    auto layer = std::make_unique<Attention>(build, config);
    if (!c.recompute) return layer;
    return std::make_unique<RecomputeLayer>(std::move(layer));
  };
}

LayerResult run_layer(const LayerCase& c, int ranks, DType dtype) {
  return run_sharded(maker(c), TestRows(c.B, c.S, c.starts), even_cuts(c.S, ranks), kWidth, dtype);
}

class AttentionLayerOverRanks : public testing::TestWithParam<LayerCase> {};
INSTANTIATE_TEST_SUITE_P(Cases, AttentionLayerOverRanks, testing::ValuesIn(layer_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(AttentionLayerOverRanks, EqualsOneRank) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    LayerCase one = GetParam();
    one.recompute = false;
    const LayerResult whole = run_layer(one, 1, dtype);
    const LayerResult parts = run_layer(GetParam(), GetParam().ranks, dtype);
    EXPECT_LE(relative_error(parts.y, whole.y), bound_of(dtype));
    EXPECT_LE(relative_error(parts.dx, whole.dx), bound_of(dtype));
    expect_equal(parts.gradients, whole.gradients, bound_of(dtype));
  }
}

// Planning runs the same code on planned groups, which count: it foretells every rank's bytes on
// the wire and the peaks of its arenas.
TEST_P(AttentionLayerOverRanks, PlansWhatItUses) {
  const LayerCase& c = GetParam();
  const Dims dims{c.B, c.S, kWidth};
  const TestRows rows(c.B, c.S, c.starts);
  const Tensor x = normal(dims, DType::f32, 1), dy = normal(dims, DType::f32, 2);
  run_layout({.cp = c.ranks}, [&](const Mesh& mesh) {
    Communicator& group = mesh.axis(Axis::cp);
    const auto planned = make_planned_communicator(c.ranks, group.rank());
    Arena saved = Arena::counting("saved", kCpu), scratch = Arena::counting("scratch", kCpu);
    const Context counting{
        .device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
    const ShardRows shard(rows, mesh);
    Rows unknown = shard.rows();  // documents are not known yet
    unknown.doc_begin.data = unknown.local_doc_begin.data = unknown.positions.data = nullptr;
    const Tensor my_x = shard.cut(x), my_dy = shard.cut(dy);
    Tensor y(my_x.dims(), DType::f32), dx(my_x.dims(), DType::f32);
    LayerHarness real = sharded_harness(maker(c), group, kWidth, DType::f32);
    LayerHarness plan = sharded_harness(maker(c), *planned, kWidth, DType::f32);
    const auto pass = [&](const LayerHarness& h, const Context& ctx, const Rows& r) {
      const auto tape = h.layer->forward(ctx, r, {.x = my_x, .y = y});
      h.layer->backward(ctx, r, {.dy = my_dy, .dx = dx}, *tape);
    };
    pass(real, real.ctx, shard);
    pass(plan, counting, unknown);
    for (const Verb verb : {Verb::all_to_all_v, Verb::point_to_point}) {
      EXPECT_EQ(planned->traffic(verb), group.traffic(verb)) << name_of(verb);
    }
    EXPECT_EQ(saved.peak(), real.ctx.saved().peak());
    EXPECT_EQ(scratch.peak(), real.ctx.scratch().peak());
  });
}

TEST(AttentionLayerOverRanks, SaysWhatItChose) {
  ModelConfig config;
  config.d_model = 8;
  config.vocab_size = 11;
  config.stack.pattern = "*-*";
  std::get<AttentionConfig>(config.sections).heads = 4;
  const auto planned = make_planned_communicator(2, 1);
  ParameterStore store(DType::f32), alone(DType::f32);
  const Model model(config, store,
                    {.recompute = Recompute::full, .groups = {.sequence = planned.get()}});
  const std::string text =
      "attention: all-to-all over 2 ranks, each with 2 of 4 query heads and 2 of 4 key-value heads";
  EXPECT_EQ(model.exchanges(),
            (std::vector<std::string>{"branches.0." + text, "branches.2." + text}));
  EXPECT_TRUE(Model(config, alone).exchanges().empty());
}

TEST(Attention, RefusesToCarryState) {
  ParameterStore store(DType::f32);
  const LayerBuild build{
      .store = store, .prefix = "branches.3.attention.", .d_model = 8, .carry_state = true};
  AttentionConfig config;
  config.heads = 4;
  expect_error<UsageError>([&] { Attention(build, config); },
                           {"branches.3.attention", "data.carry_state", "model.stack"});
}

}  // namespace
}  // namespace sluice::test
