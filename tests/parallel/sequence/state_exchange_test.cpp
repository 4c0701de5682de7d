#include "parallel/sequence/state_exchange.h"

#include <gtest/gtest.h>

#include "parallel/planned_communicator.h"
#include "tests/support/layouts.h"

namespace sluice::test {
namespace {

// Two maps of 3 x 2 numbers and two decays a rank, each number naming its rank and place.
TEST(StateExchange, EveryRankGetsAllMessagesInRankOrder) {
  for (const int ranks : {1, 2, 3, 5, 8}) {
    run_ranks(ranks, [&](Communicator& group) {
      const StateExchange exchange(group);
      TestContext ctx;
      const StateMessages messages = exchange.allocate(ctx, 12, 2, DType::f64);
      const TensorView state = messages.state(group.rank());
      const TensorView transition = messages.transition(group.rank());
      ASSERT_TRUE(state.packed() && transition.packed());
      for (int64_t i = 0; i < 12; ++i) state.as<double>()[i] = 100 * group.rank() + double(i);
      for (int64_t i = 0; i < 2; ++i) transition.as<double>()[i] = -group.rank() - 0.25 * double(i);
      exchange.finish(ctx, exchange.begin(messages));
      for (int first = 0; first < ranks; ++first) {
        const int count = ranks - first;
        const TensorView states = messages.states(first, count, {2, 3, 2});
        const TensorView decays = messages.transitions(first, count, {2});
        EXPECT_TRUE(states.dims == (Dims{1, count, 2, 3, 2}));
        EXPECT_TRUE(decays.dims == (Dims{1, count, 2}));
        for (int r = 0; r < count; ++r) {
          EXPECT_EQ(states.row<double>(r)[11], 100 * (first + r) + 11);
          EXPECT_EQ(decays.row<double>(r)[1], -(first + r) - 0.25);
        }
      }
    });
  }
}

TEST(StateExchange, ARankContributesItsMessageWhateverTheNumberOfRanks) {
  for (const int ranks : {2, 4}) {
    for (const DType dtype : {DType::f32, DType::f64}) {
      run_ranks(ranks, [&](Communicator& group) {
        const auto planned = make_planned_communicator(ranks, group.rank());
        Arena saved = Arena::counting("saved", kCpu), scratch = Arena::counting("scratch", kCpu);
        const Context counting{
            .device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
        TestContext ctx;
        const auto pass = [&](const Context& context, Communicator& comm) {
          const StateExchange exchange(comm);
          for (const int64_t transition : {5, 0}) {
            const StateMessages messages = exchange.allocate(context, 30, transition, dtype);
            exchange.finish(context, exchange.begin(messages));
          }
          return comm.traffic(Verb::all_gather);
        };
        const Traffic traffic = pass(ctx, group);
        EXPECT_EQ(traffic.contributed, int64_t(30 + 5 + 30) * int64_t(size_of(dtype)));
        EXPECT_EQ(traffic.received, traffic.contributed * (ranks - 1));
        EXPECT_EQ(pass(counting, *planned), traffic);
        EXPECT_EQ(scratch.peak(), ctx.scratch().peak());
      });
    }
  }
}

}  // namespace
}  // namespace sluice::test
