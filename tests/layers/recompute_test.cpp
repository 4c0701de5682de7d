// Recomputation over sequence ranks: the same numbers, and nothing of the forward travels twice.
#include "layers/recompute.h"

#include <gtest/gtest.h>

#include "layers/mixers/mamba.h"
#include "layers/mixers/mamba2.h"
#include "tests/support/layer_check.h"
#include "tests/support/layouts.h"

namespace sluice::test {
namespace {

constexpr int64_t B = 2, D = 6, kTokens = 19;

using MakeSharded = std::function<std::unique_ptr<Layer>(const LayerBuild&)>;

struct Pass {
  Tensor y, dx, gradients;  // of one rank
  Traffic state_forward, halo_forward, state_all, halo_all;
};

Pass run_pass(const MakeSharded& make, bool recompute, Communicator& group) {
  const TestRows batch(B, kTokens, {{4, 13}, {}});
  const ShardRows shard(batch, {0, B}, even_cuts(kTokens, group.size()), group.rank());
  LayerHarness h(
      [&](LayerBuild build) -> std::unique_ptr<Layer> {
        build.groups.sequence = &group;
        if (!recompute) return make(build);
        return std::make_unique<RecomputeLayer>(make(build));
      },
      D, DType::f32, size_t{1} << 20);
  const Tensor x = shard.cut(normal({B, kTokens, D}, DType::f32, 1));
  const Tensor dy = shard.cut(normal({B, kTokens, D}, DType::f32, 2));
  Pass pass{Tensor(x.dims(), DType::f32), Tensor(x.dims(), DType::f32), {}, {}, {}, {}, {}};
  const Traffic state = group.traffic(Verb::all_gather);
  const Traffic halo = group.traffic(Verb::all_to_all_v);
  const auto since = [](const Traffic& now, const Traffic& then) {
    return Traffic{.calls = now.calls - then.calls,
                   .contributed = now.contributed - then.contributed,
                   .sent = now.sent - then.sent,
                   .received = now.received - then.received};
  };
  const size_t before = h.ctx.saved().used();
  const auto saved = h.layer->forward(h.ctx, shard, {.x = x, .y = pass.y});
  pass.state_forward = since(group.traffic(Verb::all_gather), state);
  pass.halo_forward = since(group.traffic(Verb::all_to_all_v), halo);
  if (recompute) {
    // Only what was received is kept: halo, entering state, transitions.
    size_t received = 0;
    for (const StateTensor& tensor : h.layer->received_spec(shard)) {
      received += align_up(tensor.dims.numel() * size_of(tensor.dtype));
    }
    EXPECT_EQ(h.ctx.saved().used() - before, received);
    EXPECT_EQ(h.layer->received_spec(shard).size(), group.size() == 1 ? 0u : 3u);
  }
  h.layer->backward(h.ctx, shard, {.dy = dy, .dx = pass.dx}, *saved);
  pass.state_all = since(group.traffic(Verb::all_gather), state);
  pass.halo_all = since(group.traffic(Verb::all_to_all_v), halo);
  pass.gradients = h.gradients.clone();
  return pass;
}

class Recomputed : public testing::TestWithParam<int> {
 protected:
  void check(const MakeSharded& make) {
    const int ranks = GetParam();
    run_ranks(ranks, [&](Communicator& group) {
      const Pass plain = run_pass(make, false, group);
      const Pass replayed = run_pass(make, true, group);
      EXPECT_TRUE(bit_equal(replayed.y, plain.y));
      EXPECT_TRUE(bit_equal(replayed.dx, plain.dx));
      EXPECT_TRUE(bit_equal(replayed.gradients, plain.gradients));
      EXPECT_EQ(replayed.state_forward, plain.state_forward);
      EXPECT_EQ(replayed.halo_forward, plain.halo_forward);
      EXPECT_EQ(replayed.state_all, plain.state_all);
      EXPECT_EQ(replayed.halo_all, plain.halo_all);
      EXPECT_EQ(plain.state_forward.calls, ranks > 1 ? 1 : 0);
      EXPECT_EQ(plain.halo_forward.calls, ranks > 1 ? 1 : 0);
      EXPECT_EQ(plain.state_all.calls, ranks > 1 ? 2 : 0);
      EXPECT_EQ(plain.halo_all.calls, ranks > 1 ? 2 : 0);
    });
  }
};
INSTANTIATE_TEST_SUITE_P(Ranks, Recomputed, testing::Values(1, 2, 3, 8));

TEST_P(Recomputed, Mamba2) {
  check([](const LayerBuild& build) {
    const Mamba2Config config{.head_dim = 4, .state_dim = 3, .conv_width = 4, .chunk = 4};
    return std::make_unique<Mamba2>(build, config);
  });
}

TEST_P(Recomputed, Mamba) {
  check([](const LayerBuild& build) {
    return std::make_unique<Mamba>(build, MambaConfig{.state_dim = 3, .conv_width = 4});
  });
}

}  // namespace
}  // namespace sluice::test
