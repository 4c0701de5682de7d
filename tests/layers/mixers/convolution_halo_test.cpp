// What a mixer's convolution is given before its rank's tokens (tests/parallel/sequence has the
// exchange itself, tests/layers what comes of it).
#include "layers/mixers/convolution_halo.h"

#include <gtest/gtest.h>

#include <atomic>

#include "tests/parallel/delayed_communicator.h"
#include "tests/support/batch.h"
#include "tests/support/layouts.h"

namespace sluice::test {
namespace {

constexpr int64_t B = 2, C = 3, K = 4, kTokens = 12;

// One rank's halo, with memory for it.
struct Rank {
  Rank(Communicator& group, bool carry)
      : shard(TestRows(B, kTokens), {0, B}, even_cuts(kTokens, group.size()), group.rank()),
        store(DType::f64),
        halo({.store = store, .prefix = "", .groups = {.sequence = &group}, .carry_state = carry},
             K, C),
        x(shard.cut(normal({B, kTokens, C}, DType::f64, 1))),
        kept({B, K - 1, C}, DType::f64) {
    if (!halo.received_spec(shard).empty()) passed.halo = kept;
  }
  void forward(const Meanwhile& meanwhile) {
    halo.forward(ctx, shard, {.x = x, .passed = passed, .meanwhile = meanwhile});
  }
  TestContext ctx;
  ShardRows shard;
  ParameterStore store;
  ConvolutionHalo halo;
  Tensor x, kept;
  Passed passed;
};

TEST(ConvolutionHalo, NothingOfAReplayTravels) {
  run_ranks(3, [](Communicator& group) {
    Rank rank(group, false);
    rank.forward([] {});
    const Tensor first = rank.kept.clone();
    const Traffic traffic = group.traffic(Verb::all_to_all_v);
    EXPECT_EQ(traffic.calls, 1);
    rank.passed.filled = true;
    bool called = false;
    rank.forward([&] { called = true; });
    EXPECT_TRUE(called);
    EXPECT_EQ(group.traffic(Verb::all_to_all_v), traffic);
    EXPECT_TRUE(bit_equal(rank.kept, first));
  });
}

TEST(ConvolutionHalo, OneRankHasOneOnlyToCarryOn) {
  run_ranks(1, [](Communicator& group) {
    Rank alone(group, false);
    EXPECT_TRUE(alone.halo.received_spec(alone.shard).empty());
    int meanwhile = 0;
    alone.forward([&] { ++meanwhile; });
    alone.halo.backward(alone.ctx, alone.shard, {}, alone.x, [&] { ++meanwhile; });
    EXPECT_EQ(meanwhile, 2);
    Rank carries(group, true);
    carries.forward([] {});  // a first step: nothing has been carried yet
    for (int64_t i = 0; i < carries.kept.numel(); ++i) EXPECT_EQ(carries.kept.get(i), 0);
  });
}

// Every exchange is held back until the local work has been done.
TEST(ConvolutionHalo, LocalWorkRunsWhileTheHaloTravels) {
  run_ranks(3, [](Communicator& group) {
    std::atomic<int> local_work = 0;
    HeldVerbs held(group, [&](int verb) { return local_work > verb; });
    Rank rank(held, false);
    rank.forward([&] { ++local_work; });
    const Tensor dx = rank.x.clone();
    rank.halo.backward(rank.ctx, rank.shard, rank.kept, dx, [&] { ++local_work; });
    EXPECT_EQ(held.done(), 2);
    EXPECT_EQ(held.late(), 0);
  });
}

}  // namespace
}  // namespace sluice::test
