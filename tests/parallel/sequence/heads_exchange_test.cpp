#include "parallel/sequence/heads_exchange.h"

#include <gtest/gtest.h>

#include "tests/support/batch.h"
#include "tests/support/layouts.h"

namespace sluice::test {
namespace {

// 6 columns for each of c ranks, in two ranges that are not neighbours; then 3 columns that
// neighbouring ranks share, `copies` ranks each.
struct Columns {
  Columns(int ranks, int copies) : ranks(ranks), copies(copies) {
    total = 6 * ranks + 3 * (ranks / copies);
    for (int rank = 0; rank < ranks; ++rank) {
      shares.push_back(
          {{4 * rank, 4}, {6 * ranks + 3 * (rank / copies), 3}, {4 * ranks + 2 * rank, 2}});
    }
  }
  // Where column w of a rank's share lies in a row.
  int64_t at(int rank, int64_t w) const {
    for (const ColumnRange& range : shares[rank]) {
      if (w < range.width) return range.begin + w;
      w -= range.width;
    }
    throw Error(ExitCode::bug, "no such column");
  }
  int ranks, copies;
  int64_t total = 0, width = 9;
  std::vector<std::vector<ColumnRange>> shares;
};

struct Exchanged {
  int ranks, copies;
  int64_t B, row_tokens;
};

class HeadsExchangeLayouts : public testing::TestWithParam<Exchanged> {};
INSTANTIATE_TEST_SUITE_P(
    Layouts, HeadsExchangeLayouts,
    testing::Values(Exchanged{1, 1, 2, 3}, Exchanged{2, 1, 1, 7}, Exchanged{2, 2, 3, 2},
                    Exchanged{3, 1, 2, 10}, Exchanged{4, 2, 1, 4}, Exchanged{4, 2, 2, 9},
                    Exchanged{5, 5, 2, 11}, Exchanged{8, 2, 2, 21}, Exchanged{8, 4, 1, 8}),
    [](const auto& info) {
      const Exchanged& e = info.param;
      return concat(e.ranks, "_ranks_", e.copies, "_copies_", e.B, "x", e.row_tokens);
    });

TEST_P(HeadsExchangeLayouts, EveryRankGetsItsColumnsOfAllTokens) {
  const int ranks = GetParam().ranks, copies = GetParam().copies;
  const int64_t B = GetParam().B, S = GetParam().row_tokens;
  const Columns columns(ranks, copies);
  const TestRows rows(B, S);
  const Tensor whole = normal({B, S, columns.total}, DType::f32, 1);
  std::vector<Tensor> shared(ranks);
  for (Tensor& part : shared) part = Tensor({B, S, columns.width}, DType::f32);
  std::vector<Traffic> traffic(ranks);
  run_layout({.cp = ranks}, [&](const Mesh& mesh) {
    Communicator& group = mesh.axis(Axis::cp);
    const ShardRows shard(rows, mesh);
    const Tensor part = shard.cut(whole);
    Tensor padded(part.dims(), DType::f32, 5);  // the rows of a projection are strided
    for (int64_t i = 0; i < part.numel(); ++i) padded.set(i, part.get(i));
    TestContext ctx;
    const HeadsExchange exchange(group, columns.total, columns.shares);
    const auto ticket = exchange.begin_to_columns(ctx, shard, padded, shared[group.rank()]);
    exchange.finish_to_columns(ctx, shard, ticket);
    traffic[group.rank()] = group.traffic(Verb::all_to_all_v);
  });
  const std::vector<int64_t> cuts = even_cuts(S, ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    for (int64_t i = 0; i < shared[rank].numel(); ++i) {
      const int64_t w = i % columns.width, token = i / columns.width;
      EXPECT_EQ(shared[rank].get(i), whole.get(token * columns.total + columns.at(rank, w)));
    }
    const int64_t T = cuts[rank + 1] - cuts[rank], row_bytes = B * columns.width * 4;
    EXPECT_EQ(traffic[rank].sent, (ranks - 1) * T * row_bytes);
    EXPECT_EQ(traffic[rank].received, ranks == 1 ? 0 : (S - T) * row_bytes);
  }
}

TEST_P(HeadsExchangeLayouts, OwnersOfTokensSumCopiesInRankOrder) {
  const int ranks = GetParam().ranks, copies = GetParam().copies;
  const int64_t B = GetParam().B, S = GetParam().row_tokens;
  const Columns columns(ranks, copies);
  const TestRows rows(B, S);
  Tensor whole({B, S, columns.total}, DType::f32);
  std::vector<Tensor> shared;
  for (int rank = 0; rank < ranks; ++rank) {
    shared.push_back(normal({B, S, columns.width}, DType::f32, 10 + rank));
  }
  std::vector<Traffic> traffic(ranks);
  run_layout({.cp = ranks}, [&](const Mesh& mesh) {
    Communicator& group = mesh.axis(Axis::cp);
    const ShardRows shard(rows, mesh);
    Tensor padded({B, shard.rows().tokens, columns.total}, DType::f32, 5);
    TestContext ctx;
    const HeadsExchange exchange(group, columns.total, columns.shares);
    const auto ticket = exchange.begin_to_tokens(ctx, shard, shared[group.rank()], padded);
    exchange.finish_to_tokens(ctx, shard, ticket);
    shard.paste(copy_of(padded), whole);
    traffic[group.rank()] = group.traffic(Verb::all_to_all_v);
  });
  Tensor expected({B, S, columns.total}, DType::f32);
  std::vector<bool> written(expected.numel(), false);
  for (int rank = 0; rank < ranks; ++rank) {
    for (int64_t i = 0; i < shared[rank].numel(); ++i) {
      const int64_t at = i / columns.width * columns.total + columns.at(rank, i % columns.width);
      const float before = written[at] ? float(expected.get(at)) : 0.0f;
      expected.set(at, before + float(shared[rank].get(i)));
      written[at] = true;
    }
  }
  EXPECT_TRUE(bit_equal(whole, expected));
  const std::vector<int64_t> cuts = even_cuts(S, ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    const int64_t T = cuts[rank + 1] - cuts[rank], row_bytes = B * columns.width * 4;
    EXPECT_EQ(traffic[rank].sent, ranks == 1 ? 0 : (S - T) * row_bytes);
    EXPECT_EQ(traffic[rank].received, (ranks - 1) * T * row_bytes);
  }
}

TEST(HeadsExchange, RefusesSharesThatDoNotFit) {
  run_layout({.cp = 2}, [&](const Mesh& mesh) {
    Communicator& group = mesh.axis(Axis::cp);
    const auto build = [&](std::vector<std::vector<ColumnRange>> shares) {
      const HeadsExchange exchange(group, 8, std::move(shares));
    };
    EXPECT_NO_THROW(build({{{0, 4}}, {{4, 4}}}));
    EXPECT_NO_THROW(build({{{0, 8}}, {{0, 8}}}));
    EXPECT_THROW(build({{{0, 8}}}), Error);                    // one rank's
    EXPECT_THROW(build({{{0, 4}}, {{4, 3}}}), Error);          // of two widths
    EXPECT_THROW(build({{{0, 3}}, {{5, 3}}}), Error);          // columns 3 and 4 are nobody's
    EXPECT_THROW(build({{{0, 5}}, {{4, 4}, {0, 1}}}), Error);  // columns shared in part
    EXPECT_THROW(build({{{0, 4}}, {{6, 4}}}), Error);          // past the end
  });
}

TEST(HeadsExchange, RefusesRowsOfAnotherLayout) {
  run_layout({.cp = 2}, [&](const Mesh& mesh) {
    const TestRows whole(1, 6);
    TestContext ctx;
    const HeadsExchange exchange(mesh.axis(Axis::cp), 4, {{{0, 2}}, {{2, 2}}});
    const Tensor tokens({1, 6, 4}, DType::f32), shared({1, 6, 2}, DType::f32);
    EXPECT_THROW(exchange.begin_to_columns(ctx, whole, tokens, shared), Error);
    const ShardRows shard(whole, mesh);
    EXPECT_THROW(exchange.begin_to_columns(ctx, shard, tokens, shared), Error);
  });
}

}  // namespace
}  // namespace sluice::test
