// B batch, T tokens on this rank, C channels
#include "parallel/sequence/halo_exchange.h"

#include <gtest/gtest.h>

#include "parallel/planned_communicator.h"
#include "tests/support/batch.h"
#include "tests/support/layouts.h"

namespace sluice::test {
namespace {

constexpr int64_t B = 2, C = 3;

struct HaloCase {
  std::vector<int64_t> cuts;
  int64_t width = 3;
  int ranks() const { return int(cuts.size()) - 1; }
  int64_t row_tokens() const { return cuts.back(); }
};
std::ostream& operator<<(std::ostream& out, const HaloCase& c) {
  for (const int64_t cut : c.cuts) out << cut << " ";
  return out << "width " << c.width;
}

class HaloLayouts : public testing::TestWithParam<HaloCase> {
 protected:
  const HaloCase& c() const { return GetParam(); }
  // Runs the body with each rank's shard, exchange and part of x.
  void run(const std::function<void(Communicator&, const ShardRows&, const HaloExchange&)>& body) {
    const TestRows batch(B, c().row_tokens());
    run_ranks(c().ranks(), [&](Communicator& group) {
      const ShardRows shard(batch, {0, B}, c().cuts, group.rank());
      // A single rank may be without a group.
      const HaloExchange exchange(c().ranks() == 1 ? nullptr : &group, c().width);
      body(group, shard, exchange);
    });
  }
  // Element (b, channel) at a position of the row, which may lie before it.
  double at(const Tensor& x, const Tensor& before, int64_t b, int64_t position,
            int64_t channel) const {
    if (position < 0) return before.get((b * c().width + c().width + position) * C + channel);
    return x.get((b * c().row_tokens() + position) * C + channel);
  }
};

INSTANTIATE_TEST_SUITE_P(Cuts, HaloLayouts,
                         testing::Values(HaloCase{{0, 5}}, HaloCase{{0, 2}}, HaloCase{{0, 4, 9}},
                                         HaloCase{{0, 1, 2, 3, 4, 5, 6, 7, 8}}, HaloCase{{0, 1, 2}},
                                         HaloCase{{0, 6, 7, 8, 12, 13}}, HaloCase{{0, 1, 9, 10}},
                                         HaloCase{{0, 3, 6}, 1}, HaloCase{{0, 2, 4, 6}, 5},
                                         HaloCase{{0, 2, 4}, 0}));

TEST_P(HaloLayouts, EveryRankGetsTheInputsBeforeItsOwn) {
  const int64_t K = c().width;
  for (const bool carried : {false, true}) {
    const Tensor x = normal({B, c().row_tokens(), C}, DType::f32, 1);
    const Tensor before = carried ? normal({B, K, C}, DType::f32, 2) : zeros({B, K, C}, DType::f32);
    run([&](Communicator& group, const ShardRows& shard, const HaloExchange& exchange) {
      using End = HaloExchange::End;
      TestContext ctx;
      const Tensor mine = shard.cut(x);
      for (const End end : {End::shard_begin, End::row_end}) {
        Tensor halo({B, K, C}, DType::f32);
        const ArenaScope scope(ctx.scratch());
        const auto ticket = exchange.begin(ctx, shard, mine.view(), end);
        exchange.finish(ctx, ticket, carried ? ConstTensorView(before) : ConstTensorView(), halo);
        const int64_t stop = end == End::row_end ? c().row_tokens() : c().cuts[group.rank()];
        for (int64_t i = 0; i < halo.numel(); ++i) {
          const int64_t b = i / (K * C), j = i / C % K;
          ASSERT_EQ(halo.get(i), at(x, before, b, stop - K + j, i % C)) << "element " << i;
        }
      }
    });
  }
}

TEST_P(HaloLayouts, GradientsReturnToTheOwners) {
  const int64_t K = c().width, T = c().row_tokens();
  Tensor dx = normal({B, T, C}, DType::f64, 3);
  Tensor expected = dx.clone();
  for (int reader = 0; reader < c().ranks(); ++reader) {
    const Tensor dhalo = normal({B, K, C}, DType::f64, uint64_t(10 + reader));
    for (int64_t i = 0; i < dhalo.numel(); ++i) {
      const int64_t b = i / (K * C), position = c().cuts[reader] - K + i / C % K;
      if (position < 0) continue;
      const int64_t element = (b * T + position) * C + i % C;
      expected.set(element, expected.get(element) + dhalo.get(i));
    }
  }
  run([&](Communicator& group, const ShardRows& shard, const HaloExchange& exchange) {
    TestContext ctx;
    const Tensor mine = shard.cut(dx);
    const Tensor dhalo = normal({B, K, C}, DType::f64, uint64_t(10 + group.rank()));
    const auto ticket = exchange.begin_backward(ctx, shard, dhalo.view(), mine.view());
    exchange.finish_backward(ctx, ticket);
    shard.paste(mine, dx);
  });
  EXPECT_TRUE(bit_equal(dx, expected));
}

// Columns of a projection are sent, and gradients added to them, in place.
TEST(HaloExchange, ReadsAndWritesColumnSlices) {
  const TestRows batch(B, 6);
  const Tensor x = normal({B, 6, 5}, DType::f64, 1);
  run_ranks(2, [&](Communicator& group) {
    const ShardRows shard(batch, {0, B}, {0, 3, 6}, group.rank());
    const HaloExchange exchange(&group, 2);
    TestContext ctx;
    const Tensor mine = shard.cut(x);
    const TensorView slice = mine.view().columns(1, {3});
    Tensor halo({B, 2, 3}, DType::f64);
    const auto ticket = exchange.begin(ctx, shard, slice, HaloExchange::End::shard_begin);
    exchange.finish(ctx, ticket, {}, halo);
    if (group.rank() == 1) {
      EXPECT_EQ(halo.get(3 * 2), x.get((6 + 1) * 5 + 1));  // row 1, position 1, channel 0
    }
    Tensor dhalo({B, 2, 3}, DType::f64);
    dhalo.fill(1);
    exchange.finish_backward(ctx, exchange.begin_backward(ctx, shard, dhalo.view(), slice));
    const Tensor before = shard.cut(x);
    for (int64_t i = 0; i < mine.numel(); ++i) {
      const bool read = group.rank() == 0 && i / 5 % 3 > 0 && i % 5 >= 1 && i % 5 < 4;
      EXPECT_EQ(mine.get(i), before.get(i) + double(read)) << i;
    }
  });
}

TEST(HaloExchange, BytesAreThoseOfTheHalo) {
  const int64_t K = 3;
  const TestRows batch(B, 40);
  run_ranks(4, [&](Communicator& group) {
    const ShardRows shard(batch, {0, B}, even_cuts(40, 4), group.rank());
    const auto planned = make_planned_communicator(4, group.rank());
    Arena saved = Arena::counting("saved", kCpu), scratch = Arena::counting("scratch", kCpu);
    const Context counting{
        .device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
    TestContext ctx;
    Tensor x = normal({B, 10, C}, DType::f32, 1), halo({B, K, C}, DType::f32);
    const auto pass = [&](const Context& context, Communicator& comm) {
      const HaloExchange exchange(&comm, K);
      const auto out = exchange.begin(context, shard, x.view(), HaloExchange::End::shard_begin);
      exchange.finish(context, out, {}, halo);
      exchange.finish_backward(context, exchange.begin_backward(context, shard, halo.view(), x));
      return comm.traffic(Verb::all_to_all_v);
    };
    const Traffic traffic = pass(ctx, group);
    const int64_t halo_bytes = B * K * C * 4;
    const int neighbours = (group.rank() > 0) + (group.rank() < 3);
    EXPECT_EQ(traffic.calls, 2);
    EXPECT_EQ(traffic.contributed, neighbours * halo_bytes);
    EXPECT_EQ(traffic.received, neighbours * halo_bytes);
    EXPECT_EQ(pass(counting, *planned), traffic);
    EXPECT_EQ(scratch.peak(), ctx.scratch().peak());
  });
}

TEST(HaloExchange, RefusesCutsOfOtherRanks) {
  const TestRows batch(1, 4);
  const HaloExchange exchange(nullptr, 2);
  TestContext ctx;
  const ShardRows shard(batch, {0, 1}, {0, 2, 4}, 0);
  const Tensor x({1, 2, 1}, DType::f32);
  EXPECT_THROW(exchange.begin(ctx, shard, x.view(), HaloExchange::End::shard_begin), Error);
}

}  // namespace
}  // namespace sluice::test
