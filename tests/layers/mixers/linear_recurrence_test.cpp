// The driver alone, with maps made up, against maps applied one after another by hand.
#include "layers/mixers/linear_recurrence.h"

#include <gtest/gtest.h>

#include <atomic>

#include "tests/parallel/delayed_communicator.h"
#include "tests/support/batch.h"
#include "tests/support/layouts.h"

namespace sluice::test {
namespace {

constexpr int64_t B = 2, kBlocks = 3, P = 2, N = 2;
constexpr int64_t kState = B * kBlocks * P * N, kDecays = B * kBlocks;

// What every rank's tokens do, and the gradients that its outputs give.
struct Maps {
  explicit Maps(int ranks)
      : state(normal({ranks, kState}, DType::f64, 1)),
        decay(normal({ranks, kDecays}, DType::f64, 2, 0.3, 0.8)),
        dstate(normal({ranks, kState}, DType::f64, 3)),
        carried(normal({kState}, DType::f64, 4)) {}
  double decay_of(int rank, int64_t element) const {
    return decay.get(rank * kDecays + element / (P * N));
  }
  // The state before rank `rank`, or after all of them.
  double entering(int rank, int64_t element, bool from_carried) const {
    double sum = from_carried ? carried.get(element) : 0;
    for (int r = 0; r < rank; ++r) {
      sum = decay_of(r, element) * sum + state.get(r * kState + element);
    }
    return sum;
  }
  double leaving_gradient(int rank, int ranks, int64_t element) const {
    double sum = 0;
    for (int r = ranks - 1; r > rank; --r) {
      sum = dstate.get(r * kState + element) + decay_of(r, element) * sum;
    }
    return sum;
  }
  Tensor state, decay, dstate, carried;
};

// One rank's driver, with memory for what it passes.
struct Driver {
  Driver(Communicator& group, const TestRows& batch, bool carry)
      : shard(batch, {0, B}, even_cuts(Rows(batch).row_tokens, group.size()), group.rank()),
        store(DType::f64),
        recurrence(
            {.store = store, .prefix = "", .groups = {.sequence = &group}, .carry_state = carry},
            std::make_unique<BlockDecay>(kBlocks, P, N)),
        spec(recurrence.received_spec(shard)) {
    for (const StateTensor& tensor : spec) kept.emplace_back(tensor.dims, tensor.dtype);
    if (!kept.empty()) passed.state = kept[0];
    if (kept.size() > 1) passed.transitions = kept[1];
  }
  void forward(const Maps& maps, int rank, const Carried* carried, const Meanwhile& meanwhile) {
    recurrence.forward(ctx, shard,
                       {.passed = passed,
                        .carried = carried,
                        .fold =
                            [&](const TensorView& state, const TensorView& transition) {
                              for (int64_t i = 0; i < kState; ++i) {
                                state.as<double>()[i] = maps.state.get(rank * kState + i);
                              }
                              for (int64_t i = 0; i < kDecays; ++i) {
                                transition.as<double>()[i] = maps.decay.get(rank * kDecays + i);
                              }
                            },
                        .meanwhile = meanwhile});
  }
  TensorView backward(const Maps& maps, int rank, const Meanwhile& meanwhile) {
    return recurrence.backward(
        ctx, shard, passed,
        [&](const TensorView& dstate) {
          for (int64_t i = 0; i < kState; ++i) {
            dstate.as<double>()[i] = maps.dstate.get(rank * kState + i);
          }
        },
        meanwhile);
  }
  TestContext ctx;
  ShardRows shard;
  ParameterStore store;
  LinearRecurrence recurrence;
  std::vector<StateTensor> spec;
  std::vector<Tensor> kept;
  Passed passed;
};

TEST(LinearRecurrence, AppliesTheMapsOfTheRanksBeforeAndAfter) {
  const TestRows batch(B, 16);
  for (const int ranks : {2, 3, 5, 8}) {
    for (const bool carry : {false, true}) {
      const Maps maps(ranks);
      run_ranks(ranks, [&](Communicator& group) {
        const int rank = group.rank();
        Driver driver(group, batch, carry);
        Tensor tail({1}, DType::f64), final({B, kBlocks, P, N}, DType::f64);
        const Carried carried{.incoming = {tail, maps.carried.view().reshape({B, kBlocks, P, N})},
                              .outgoing = {tail, final}};
        int meanwhile = 0;
        driver.forward(maps, rank, carry ? &carried : nullptr, [&] { ++meanwhile; });
        EXPECT_EQ(driver.ctx.scratch().used(), 0u);
        const TensorView gradient = driver.backward(maps, rank, [&] { ++meanwhile; });
        EXPECT_EQ(meanwhile, 2);
        for (int64_t i = 0; i < kState; ++i) {
          EXPECT_NEAR(driver.kept[0].get(i), maps.entering(rank, i, carry), 1e-13);
          EXPECT_NEAR(gradient.as<double>()[i], maps.leaving_gradient(rank, ranks, i), 1e-13);
          if (carry) {
            EXPECT_NEAR(final.get(i), maps.entering(ranks, i, true), 1e-13);
          }
        }
      });
    }
  }
}

TEST(LinearRecurrence, NothingOfAReplayTravels) {
  const TestRows batch(B, 6);
  const Maps maps(3);
  run_ranks(3, [&](Communicator& group) {
    Driver driver(group, batch, false);
    driver.forward(maps, group.rank(), nullptr, [] {});
    const Tensor state = driver.kept[0].clone();
    const Traffic traffic = group.traffic(Verb::all_gather);
    EXPECT_EQ(traffic.calls, 1);
    driver.passed.filled = true;
    bool called = false;
    driver.forward(maps, group.rank(), nullptr, [&] { called = true; });
    EXPECT_TRUE(called);
    EXPECT_EQ(group.traffic(Verb::all_gather), traffic);
    EXPECT_TRUE(bit_equal(driver.kept[0], state));
  });
}

TEST(LinearRecurrence, OneRankPassesNothingButWhatIsCarried) {
  const TestRows batch(B, 6);
  run_ranks(1, [&](Communicator& group) {
    const Maps maps(1);
    Driver alone(group, batch, false);
    EXPECT_TRUE(alone.spec.empty());
    EXPECT_FALSE(bool(alone.recurrence.final_state(nullptr)));
    Driver carries(group, batch, true);
    ASSERT_EQ(carries.spec.size(), 1u);
    Tensor final({B, kBlocks, P, N}, DType::f64);
    const Carried carried{.incoming = {final, maps.carried.view().reshape({B, kBlocks, P, N})},
                          .outgoing = {final, final}};
    carries.forward(maps, 0, &carried, [] {});
    for (int64_t i = 0; i < kState; ++i) {
      EXPECT_EQ(carries.kept[0].get(i), maps.carried.get(i));
    }
    EXPECT_EQ(carries.recurrence.final_state(&carried).data, final.view().data);
    EXPECT_FALSE(bool(carries.backward(maps, 0, [] {})));
    EXPECT_THROW(alone.forward(maps, 0, &carried, [] {}), Error);
  });
}

// Every all-gather is held back until the local work has been done.
TEST(LinearRecurrence, LocalWorkRunsWhileTheStateTravels) {
  const TestRows batch(B, 6);
  const Maps maps(3);
  run_ranks(3, [&](Communicator& group) {
    std::atomic<int> local_work = 0;
    HeldVerbs held(group, [&](int verb) { return local_work > verb; });
    Driver driver(held, batch, false);
    driver.forward(maps, group.rank(), nullptr, [&] {
      EXPECT_EQ(held.done(), 0);
      ++local_work;
    });
    EXPECT_EQ(held.done(), 1);
    driver.backward(maps, group.rank(), [&] {
      EXPECT_EQ(held.done(), 1);
      ++local_work;
    });
    EXPECT_EQ(held.done(), 2);
    EXPECT_EQ(held.late(), 0);
  });
}

}  // namespace
}  // namespace sluice::test
