// Rows that go on where the rows of the step before ended: the state and the convolution's tail
// that a layer is given and gives, on one rank and on several. B batch, S tokens of a row, D model,
// K conv width
#include <gtest/gtest.h>

#include "layers/mixers/mamba.h"
#include "layers/mixers/mamba2.h"
#include "layers/recompute.h"
#include "tests/support/layer_check.h"
#include "tests/support/layouts.h"

namespace sluice::test {
namespace {

constexpr int64_t B = 2, D = 6;

using MakeCarrying = std::function<std::unique_ptr<Layer>(LayerBuild)>;

struct Kind {
  const char* name = "";
  MakeCarrying make = {};
};

std::vector<Kind> kinds() {
  return {{"mamba2",
           [](const LayerBuild& build) {
             const Mamba2Config config{.head_dim = 4, .state_dim = 3, .conv_width = 4, .chunk = 4};
             return std::make_unique<Mamba2>(build, config);
           }},
          {"mamba", [](const LayerBuild& build) {
             return std::make_unique<Mamba>(build, MambaConfig{.state_dim = 3, .conv_width = 4});
           }}};
}

LayerHarness harness(const MakeCarrying& make, Communicator* group, DType dtype) {
  return LayerHarness(
      [&](LayerBuild build) {
        build.groups.sequence = group;
        build.carry_state = true;
        return make(build);
      },
      D, dtype, size_t{1} << 20);
}

// Row `index` of S tokens of longer rows: documents that began earlier have negative starts.
struct Window {
  Window(const Rows& whole, int64_t index, int64_t S) : rows(B, S), doc_begin({B, S}, DType::i32) {
    for (int64_t i = 0; i < B * S; ++i) {
      const int64_t start = whole.doc_begin.row<int32_t>(i / S)[index * S + i % S];
      doc_begin.set(i, double(start - index * S));
    }
    rows.rows().doc_begin = rows.rows().local_doc_begin = doc_begin;
  }
  TestRows rows;
  Tensor doc_begin;
};

std::vector<Tensor> states_of(const Layer& layer, int64_t S, double value) {
  std::vector<Tensor> states;
  for (const StateTensor& spec : layer.state_spec(B, S)) {
    states.emplace_back(spec.dims, spec.dtype);
    states.back().fill(value);
  }
  return states;
}

Carried carried_of(const std::vector<Tensor>& incoming, const std::vector<Tensor>& outgoing) {
  return {.incoming = {incoming.begin(), incoming.end()},
          .outgoing = {outgoing.begin(), outgoing.end()}};
}

Tensor tokens_of(const Tensor& whole, int64_t begin, int64_t S) {
  const int64_t tokens = whole.dims()[1];
  Tensor part({B, S, D}, whole.dtype());
  for (int64_t i = 0; i < part.numel(); ++i) {
    part.set(i, whole.get((i / (S * D) * tokens + begin + i / D % S) * D + i % D));
  }
  return part;
}

struct CarryCase {
  const char* name = "";
  int ranks = 1;
  int64_t S = 1;
  std::vector<std::vector<int64_t>> starts = {};
};

std::vector<CarryCase> carry_cases() {
  return {
      {"one_rank", 1, 7, {{7, 16}, {}}},
      {"one_rank_short_rows", 1, 2, {{4}, {1}}},
      {"one_rank_one_token", 1, 1},
      {"two_ranks", 2, 7, {{7, 14}, {5}}},
      {"two_ranks_one_token_each", 2, 2, {{2}, {}}},
      {"three_ranks", 3, 7, {{14}, {8, 13}}},
      {"three_ranks_no_start", 3, 8},
      {"three_ranks_one_token_each", 3, 3, {{3, 6}, {5}}},
  };
}

class CarriedState : public testing::TestWithParam<std::tuple<Kind, CarryCase>> {};
INSTANTIATE_TEST_SUITE_P(Layers, CarriedState,
                         testing::Combine(testing::ValuesIn(kinds()),
                                          testing::ValuesIn(carry_cases())),
                         [](const auto& info) {
                           return concat(std::get<0>(info.param).name, "_",
                                         std::get<1>(info.param).name);
                         });

TEST_P(CarriedState, ThreeRowsAreOneLongRow) {
  const auto& [kind, c] = GetParam();
  const int64_t S = c.S;
  const TestRows long_rows(B, 3 * S, c.starts);
  const Tensor x = normal({B, 3 * S, D}, DType::f64, 1);
  Tensor expected({B, 3 * S, D}, DType::f64);
  {
    LayerHarness h = harness(kind.make, nullptr, DType::f64);
    h.layer->forward(h.ctx, long_rows, {.x = x, .y = expected});
  }
  std::vector<Tensor> first_state, last_state;  // of the last row, on the first and last rank
  std::vector<Tensor> y(3);
  for (Tensor& row : y) row = Tensor({B, S, D}, DType::f64);
  run_ranks(c.ranks, [&](Communicator& group) {
    LayerHarness h = harness(kind.make, &group, DType::f64);
    std::vector<Tensor> incoming = states_of(*h.layer, S, 0);
    for (int64_t row = 0; row < 3; ++row) {
      const Window window(long_rows, row, S);
      const ShardRows shard(window.rows, {0, B}, even_cuts(S, c.ranks), group.rank());
      const Tensor my_x = shard.cut(tokens_of(x, row * S, S));
      Tensor my_y(my_x.dims(), DType::f64);
      std::vector<Tensor> outgoing = states_of(*h.layer, S, std::nan(""));
      const Carried carried = carried_of(incoming, outgoing);
      const ArenaScope scope(h.ctx.saved());
      h.layer->forward(h.ctx, shard, {.x = my_x, .y = my_y, .carried = &carried});
      shard.paste(my_y, y[row]);
      incoming = std::move(outgoing);
    }
    if (group.rank() + 1 == c.ranks)
      last_state = std::move(incoming);
    else if (group.rank() == 0)
      first_state = std::move(incoming);
  });
  for (int64_t row = 0; row < 3; ++row) {
    EXPECT_LE(relative_error(y[row], tokens_of(expected, row * S, S)), 1e-12) << "row " << row;
  }
  for (size_t i = 0; i < first_state.size(); ++i) {
    EXPECT_TRUE(bit_equal(first_state[i], last_state[i])) << "state " << i;
  }
}

// The state carried out is the one from which single steps go on.
TEST_P(CarriedState, IsThatOfSingleSteps) {
  const auto& [kind, c] = GetParam();
  const int64_t S = c.S;
  const TestRows rows(B, S);
  const Tensor x = normal({B, S, D}, DType::f64, 1);
  std::vector<Tensor> carried_out;
  run_ranks(c.ranks, [&](Communicator& group) {
    LayerHarness h = harness(kind.make, &group, DType::f64);
    const ShardRows shard(rows, {0, B}, even_cuts(S, c.ranks), group.rank());
    const std::vector<Tensor> incoming = states_of(*h.layer, S, 0);
    std::vector<Tensor> outgoing = states_of(*h.layer, S, std::nan(""));
    const Carried carried = carried_of(incoming, outgoing);
    const Tensor my_x = shard.cut(x);
    Tensor y(my_x.dims(), DType::f64);
    h.layer->forward(h.ctx, shard, {.x = my_x, .y = y, .carried = &carried});
    if (group.rank() == 0) carried_out = std::move(outgoing);
  });
  LayerHarness h = harness(kind.make, nullptr, DType::f64);
  const std::vector<Tensor> states = states_of(*h.layer, S, 0);
  Tensor y({B, D}, DType::f64);
  for (int64_t t = 0; t < S; ++t) {
    const Tensor token = tokens_of(x, t, 1);
    h.layer->step(h.ctx, {.x = token.view().reshape({B, D}),
                          .y = y,
                          .position = t,
                          .states = {states.begin(), states.end()}});
  }
  for (size_t i = 0; i < states.size(); ++i) {
    EXPECT_LE(relative_error(carried_out[i], states[i]), 1e-12) << "state " << i;
  }
}

// With a state carried in, on `ranks` ranks: y, dx and the gradients of all parameters.
struct Result {
  Tensor y, dx, gradients;
};

Result run_carried(const MakeCarrying& make, const CarryCase& c, int ranks, bool recompute) {
  const TestRows long_rows(B, 3 * c.S, c.starts);
  const Window window(long_rows, 1, c.S);
  const Tensor x = normal({B, c.S, D}, DType::f64, 1), dy = normal({B, c.S, D}, DType::f64, 2);
  Result result{Tensor(x.dims(), DType::f64), Tensor(x.dims(), DType::f64), {}};
  run_ranks(ranks, [&](Communicator& group) {
    LayerHarness h = harness(
        [&](const LayerBuild& build) -> std::unique_ptr<Layer> {
          if (!recompute) return make(build);
          return std::make_unique<RecomputeLayer>(make(build));
        },
        &group, DType::f64);
    const ShardRows shard(window.rows, {0, B}, even_cuts(c.S, ranks), group.rank());
    std::vector<Tensor> incoming = states_of(*h.layer, c.S, 0);
    for (size_t i = 0; i < incoming.size(); ++i) incoming[i].fill_normal(20 + i);
    std::vector<Tensor> outgoing = states_of(*h.layer, c.S, std::nan(""));
    const Carried carried = carried_of(incoming, outgoing);
    const Tensor my_x = shard.cut(x), my_dy = shard.cut(dy);
    Tensor y(my_x.dims(), DType::f64), dx(my_x.dims(), DType::f64);
    const auto saved = h.layer->forward(h.ctx, shard, {.x = my_x, .y = y, .carried = &carried});
    // What was carried in need not last until the backward.
    for (Tensor& state : incoming) state.poison();
    h.layer->backward(h.ctx, shard, {.dy = my_dy, .dx = dx}, *saved);
    shard.paste(y, result.y), shard.paste(dx, result.dx);
    Tensor sum = sum_over(group, h.gradients);
    if (group.rank() == 0) result.gradients = std::move(sum);
  });
  return result;
}

TEST_P(CarriedState, GradientsDoNotDependOnRanksOrRecompute) {
  const auto& [kind, c] = GetParam();
  const Result whole = run_carried(kind.make, c, 1, false);
  for (const bool recompute : {false, true}) {
    const Result parts = run_carried(kind.make, c, c.ranks, recompute);
    EXPECT_LE(relative_error(parts.y, whole.y), 1e-10);
    EXPECT_LE(relative_error(parts.dx, whole.dx), 1e-10);
    EXPECT_LE(relative_error(parts.gradients, whole.gradients), 1e-10);
  }
}

// The gradient is cut at the row's start: what came in counts as given.
void check_carried_gradients(const MakeCarrying& make, int64_t S,
                             const std::vector<std::vector<int64_t>>& starts) {
  const Window window(TestRows(B, 3 * S, starts), 1, S);
  LayerHarness h = harness(make, nullptr, DType::f64);
  std::vector<Tensor> incoming = states_of(*h.layer, S, 0);
  for (size_t i = 0; i < incoming.size(); ++i) incoming[i].fill_normal(20 + i);
  const std::vector<Tensor> outgoing = states_of(*h.layer, S, 0);
  const Carried carried = carried_of(incoming, outgoing);
  Tensor x = normal({B, S, D}, DType::f64, 1), y(x.dims(), DType::f64), dx(x.dims(), DType::f64);
  const Tensor dy = normal(x.dims(), DType::f64, 2);
  const auto forward = [&] {
    return h.layer->forward(h.ctx, window.rows, {.x = x, .y = y, .carried = &carried});
  };
  {
    const ArenaScope scope(h.ctx.saved());
    h.layer->backward(h.ctx, window.rows, {.dy = dy, .dx = dx}, *forward());
  }
  const auto loss = [&] {
    const ArenaScope scope(h.ctx.saved());
    forward();
    return weighted_sum({&y}, {&dy});
  };
  check_gradients(loss, {{"x", &x, &dx}}, kGradientCheck, 60);
  check_parameter_gradients(h, loss, 20);
}

TEST(CarriedStateGradients, MatchCentralDifferences) {
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    check_carried_gradients(kind.make, 7, {{7, 16}, {10}});
    check_carried_gradients(kind.make, 2, {{3}, {}});
    check_carried_gradients(kind.make, 1, {});
  }
}

TEST(CarriedStateOfAnotherLayer, IsRefused) {
  for (const Kind& kind : kinds()) {
    LayerHarness h([&](const LayerBuild& build) { return kind.make(build); }, D, DType::f32);
    const TestRows rows(B, 3);
    const std::vector<Tensor> states = states_of(*h.layer, 3, 0);
    const Carried carried = carried_of(states, states);
    const Tensor x = normal({B, 3, D}, DType::f32, 1);
    Tensor y(x.dims(), DType::f32);
    EXPECT_THROW(h.layer->forward(h.ctx, rows, {.x = x, .y = y, .carried = &carried}), Error);
  }
}

}  // namespace
}  // namespace sluice::test
