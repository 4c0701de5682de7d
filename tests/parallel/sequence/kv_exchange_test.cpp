#include "parallel/sequence/kv_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>

#include "tests/parallel/delayed_communicator.h"
#include "tests/support/batch.h"
#include "tests/support/layouts.h"

namespace sluice::test {
namespace {

struct Ring {
  int ranks = 1;
  int64_t B = 1, row_tokens = 1, window = 0;
};

class KvRings : public testing::TestWithParam<Ring> {};
INSTANTIATE_TEST_SUITE_P(Layouts, KvRings,
                         testing::Values(Ring{1, 2, 3, 0}, Ring{2, 1, 7, 0}, Ring{3, 2, 10, 0},
                                         Ring{4, 1, 4, 0}, Ring{5, 3, 13, 0}, Ring{8, 2, 21, 0},
                                         Ring{2, 2, 9, 1}, Ring{4, 2, 18, 2}, Ring{4, 1, 20, 5},
                                         Ring{4, 2, 21, 6}, Ring{5, 2, 13, 7}, Ring{8, 2, 8, 3},
                                         Ring{8, 1, 27, 100}),
                         [](const auto& info) {
                           const Ring& r = info.param;
                           return concat(r.ranks, "_ranks_", r.B, "x", r.row_tokens, "_window_",
                                         r.window);
                         });

// The definition, query by query: does some query of `rank` see position s?
bool sees(const std::vector<int64_t>& cuts, int rank, int64_t s, int64_t window) {
  for (int64_t t = cuts[rank]; t < cuts[rank + 1]; ++t) {
    if (s <= t && (window == 0 || s > t - window)) return true;
  }
  return false;
}

// Positions of `owner` that any rank to the right sees.
int64_t travelling(const std::vector<int64_t>& cuts, int owner, int64_t window) {
  int64_t count = 0;
  for (int64_t s = cuts[owner]; s < cuts[owner + 1]; ++s) {
    bool seen = false;
    for (int rank = owner + 1; rank + 1 < int(cuts.size()); ++rank) {
      seen |= sees(cuts, rank, s, window);
    }
    count += seen;
  }
  return count;
}
bool sees_block(const std::vector<int64_t>& cuts, int rank, int owner, int64_t window) {
  return rank + 1 < int(cuts.size()) && owner < rank &&
         sees(cuts, rank, cuts[owner + 1] - 1, window);
}

constexpr int64_t kColumns = 3;

TEST_P(KvRings, EveryRankIsShownTheKeysThatItsQueriesSee) {
  const int ranks = GetParam().ranks;
  const int64_t B = GetParam().B, S = GetParam().row_tokens, window = GetParam().window;
  const std::vector<int64_t> cuts = even_cuts(S, ranks);
  const TestRows rows(B, S);
  const Tensor whole = normal({B, S, kColumns}, DType::f64, 1);
  run_layout({.cp = ranks}, [&](const Mesh& mesh) {
    Communicator& group = mesh.axis(Axis::cp);
    const int rank = group.rank();
    const ShardRows shard(rows, mesh);
    const Tensor own = shard.cut(whole);
    TestContext ctx;
    KvRing ring(ctx, group, shard, window, own);
    std::vector<bool> shown(S, false);
    int nearest = rank;
    while (const KvBlock block = ring.next()) {
      EXPECT_EQ(block.owner, --nearest);
      const Tensor kv = copy_of(block.kv);
      ASSERT_TRUE(kv.dims() == Dims({shard.rows().rows, block.keys.size(), kColumns}));
      for (int64_t i = 0; i < kv.numel(); ++i) {
        const int64_t b = i / kColumns / block.keys.size();
        const int64_t s = block.keys.begin + i / kColumns % block.keys.size();
        EXPECT_EQ(kv.get(i), whole.get((b * S + s) * kColumns + i % kColumns));
        shown[s] = true;
      }
    }
    ring.finish();
    for (int64_t s = 0; s < cuts[rank]; ++s) {
      EXPECT_TRUE(shown[s] || !sees(cuts, rank, s, window)) << s << " to rank " << rank;
    }
    int64_t tokens = 0;
    for (int owner = 0; owner <= rank; ++owner) {
      if (sees_block(cuts, rank + 1, owner, window)) tokens += travelling(cuts, owner, window);
    }
    EXPECT_EQ(group.traffic(Verb::point_to_point).sent, tokens * B * kColumns * 8);
  });
}

TEST_P(KvRings, OwnersAddGradientsInTheOrderOfTheRanks) {
  const int ranks = GetParam().ranks;
  const int64_t B = GetParam().B, S = GetParam().row_tokens, window = GetParam().window;
  const std::vector<int64_t> cuts = even_cuts(S, ranks);
  const TestRows rows(B, S);
  const Dims dims{B, S, kColumns};
  // Rank r's gradients of everybody's keys; nothing of those it does not see.
  std::vector<Tensor> shares;
  for (int rank = 0; rank < ranks; ++rank) {
    shares.push_back(normal(dims, DType::f32, 10 + rank));
    for (int64_t i = 0; i < dims.numel(); ++i) {
      if (!sees(cuts, rank, i / kColumns % S, window)) shares[rank].set(i, 0);
    }
  }
  Tensor total(dims, DType::f32);
  run_layout({.cp = ranks}, [&](const Mesh& mesh) {
    Communicator& group = mesh.axis(Axis::cp);
    const int rank = group.rank();
    const ShardRows shard(rows, mesh);
    const Tensor own = shard.cut(shares[rank]);
    TestContext ctx;
    KvReturn gradients(ctx, group, shard, window, own);
    int64_t tokens = 0;
    for (int step = 1; step <= gradients.steps(); ++step) {
      const int owner = rank - step;
      if (owner >= 0 && sees_block(cuts, rank, owner, window)) {
        const TensorView room = gradients.room(step);
        const int64_t count = room.dim(1), begin = cuts[owner + 1] - count;
        for (int64_t i = 0; i < room.numel(); ++i) {
          const int64_t row = i / kColumns / count * S + begin + i / kColumns % count;
          room.as<float>()[i] = float(shares[rank].get(row * kColumns + i % kColumns));
        }
        tokens += travelling(cuts, owner, window);
      }
      gradients.give(step);
    }
    gradients.finish();
    shard.paste(own, total);
    EXPECT_EQ(group.traffic(Verb::point_to_point).sent, tokens * B * kColumns * 4);
  });
  for (int64_t i = 0; i < dims.numel(); ++i) {
    float expected = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const int64_t s = i / kColumns % S;
      if (sees(cuts, rank, s, window)) expected += float(shares[rank].get(i));
    }
    EXPECT_EQ(float(total.get(i)), expected) << i;
  }
}

// The second block does not arrive before the first one was worked on: so it was not waited for.
TEST(KvRing, TheNextBlockTravelsMeanwhile) {
  run_layout({.cp = 3}, [&](const Mesh& mesh) {
    const TestRows rows(1, 6);
    const ShardRows shard(rows, mesh);
    const bool last = mesh.at().cp == 2;
    std::atomic<bool> worked = !last;
    HeldVerbs group(mesh.axis(Axis::cp), [&](int verb) { return verb != 1 || worked; });
    TestContext ctx;
    const Tensor kv = normal({1, 2, kColumns}, DType::f32, 1);
    KvRing ring(ctx, group, shard, 0, kv);
    int blocks = 0;
    while (ring.next()) {
      ++blocks;
      worked = true;
    }
    ring.finish();
    EXPECT_EQ(blocks, mesh.at().cp);
    EXPECT_TRUE(group.done() == 2 || !last);
    EXPECT_EQ(group.late(), 0);
  });
}

// The last rank works on its second block before the gradients of its first have left.
TEST(KvReturn, GradientsTravelMeanwhile) {
  run_layout({.cp = 3}, [&](const Mesh& mesh) {
    const TestRows rows(1, 6);
    const ShardRows shard(rows, mesh);
    const bool last = mesh.at().cp == 2;
    std::atomic<bool> worked = !last;
    HeldVerbs group(mesh.axis(Axis::cp), [&](int verb) { return verb != 0 || worked; });
    TestContext ctx;
    const Tensor own = normal({1, 2, kColumns}, DType::f32, 1);
    const Tensor before = own.clone();
    KvReturn gradients(ctx, group, shard, 0, own);
    for (int step = 1; step <= gradients.steps(); ++step) {
      if (mesh.at().cp >= step) {
        const TensorView room = gradients.room(step);
        std::fill_n(room.as<float>(), room.numel(), 1.0f);
      }
      if (step == 2) worked = true;
      gradients.give(step);
    }
    gradients.finish();
    for (int64_t i = 0; i < own.numel(); ++i) {
      EXPECT_NEAR(own.get(i), before.get(i) + (2 - mesh.at().cp), 1e-6);
    }
    EXPECT_TRUE(group.done() == 2 || !last);
    EXPECT_EQ(group.late(), 0);
  });
}

TEST(KvRing, RefusesRowsOfAnotherLayout) {
  run_layout({.cp = 2}, [&](const Mesh& mesh) {
    const TestRows whole(1, 6);
    TestContext ctx;
    const Tensor kv({1, 6, kColumns}, DType::f32);
    EXPECT_THROW(KvRing(ctx, mesh.axis(Axis::cp), whole, 0, kv), Error);
    const ShardRows shard(whole, mesh);
    EXPECT_THROW(KvRing(ctx, mesh.axis(Axis::cp), shard, 0, kv), Error);
    EXPECT_THROW(KvRing(ctx, mesh.axis(Axis::cp), shard, -1, shard.cut(kv)), Error);
  });
}

}  // namespace
}  // namespace sluice::test
