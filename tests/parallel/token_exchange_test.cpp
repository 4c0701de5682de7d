#include "parallel/token_exchange.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "parallel/planned_communicator.h"
#include "parallel/slot_exchange.h"
#include "tests/parallel/backends.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

// Loads: how many rows each rank has for each expert.
using Load = std::function<int32_t(int rank, int64_t expert)>;

struct NamedLoad {
  const char* name;
  Load load;
};
std::vector<NamedLoad> loads() {
  return {
      {"even", [](int, int64_t) { return 3; }},
      {"random", [](int rank, int64_t e) { return random_below({.seed = 5}, rank * 64 + e, 7); }},
      {"one expert", [](int, int64_t e) { return e == 1 ? 9 : 0; }},
      {"last expert, one source", [](int rank, int64_t e) { return rank == 0 && e == 3 ? 11 : 0; }},
      {"a rank without rows", [](int rank, int64_t e) { return rank == 1 ? 0 : int(1 + e % 3); }},
      {"one row", [](int rank, int64_t e) { return rank == 0 && e == 0 ? 1 : 0; }},
      {"nothing", [](int, int64_t) { return 0; }}};
}

std::vector<int32_t> all_counts(const Load& load, int ranks, int64_t experts) {
  std::vector<int32_t> counts;
  for (int rank = 0; rank < ranks; ++rank) {
    for (int64_t e = 0; e < experts; ++e) counts.push_back(load(rank, e));
  }
  return counts;
}

// Rounds of all ranks fit together: what leaves arrives, within the room, every row once.
void expect_complete_routes(const std::vector<int32_t>& counts, int ranks, double factor) {
  const int64_t X = int64_t(counts.size()) / ranks;
  std::vector<TokenRoutes> routes;
  for (int rank = 0; rank < ranks; ++rank) {
    routes.push_back(route_tokens(counts, ranks, rank, factor));
  }
  const int64_t room = routes[0].room;
  const size_t rounds = routes[0].rounds.size();
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  EXPECT_GE(room * ranks, total);
  EXPECT_GE(rounds, 1u);
  EXPECT_LE(rounds, factor >= ranks ? 1u : size_t(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    ASSERT_EQ(routes[rank].rounds.size(), rounds);
    EXPECT_EQ(routes[rank].room, room);
    std::vector<int> left(std::accumulate(&counts[rank * X], &counts[rank * X] + X, 0), 0);
    for (size_t i = 0; i < rounds; ++i) {
      const TokenRound& round = routes[rank].rounds[i];
      for (int peer = 0; peer < ranks; ++peer) {
        EXPECT_EQ(round.incoming[peer], routes[peer].rounds[i].outgoing[rank]);
      }
      const int64_t arrived = std::accumulate(round.incoming.begin(), round.incoming.end(), 0);
      EXPECT_LE(arrived, room);
      EXPECT_EQ(int64_t(round.offsets.size()), X / ranks + 1);
      EXPECT_EQ(round.offsets.back(), arrived);
      for (const RowBlock& block : round.packing) {
        for (int64_t row = 0; row < block.rows; ++row) ++left.at(block.from + row);
      }
    }
    EXPECT_EQ(left, std::vector<int>(left.size(), 1));
  }
}

TEST(RouteTokens, SendsEveryRowOnceWithinTheRoom) {
  for (const NamedLoad& load : loads()) {
    for (const int ranks : {1, 2, 3, 4}) {
      for (const int64_t local : {1, 2, 3}) {
        for (const double factor : {1.0, 1.5, 2.0, 8.0}) {
          SCOPED_TRACE(concat(load.name, ", ", ranks, " x ", local, " experts, factor ", factor));
          expect_complete_routes(all_counts(load.load, ranks, ranks * local), ranks, factor);
        }
      }
    }
  }
}

TEST(RouteTokens, TheWholeLoadOnOneRankTakesARoundForEveryRank) {
  const std::vector<int32_t> counts =
      all_counts([](int, int64_t e) { return e == 1 ? 9 : 0; }, 4, 8);
  EXPECT_EQ(route_tokens(counts, 4, 0, 1).rounds.size(), 4u);
  EXPECT_EQ(route_tokens(counts, 4, 0, 2).rounds.size(), 2u);
  EXPECT_EQ(route_tokens(counts, 4, 0, 4).rounds.size(), 1u);
}

TEST(RouteTokens, HandComputed) {
  // Two ranks with experts {0, 1} and {2, 3}; mean load 5, room 5; rank 1 gets 7 rows.
  const std::vector<int32_t> counts = {1, 0, 2, 2,   //
                                       2, 0, 0, 3};  //
  const TokenRoutes first = route_tokens(counts, 2, 0, 1.0);
  const TokenRoutes second = route_tokens(counts, 2, 1, 1.0);
  EXPECT_EQ(first.room, 5);
  ASSERT_EQ(first.rounds.size(), 2u);
  EXPECT_EQ(first.rounds[0].outgoing, (std::vector<int64_t>{1, 4}));
  EXPECT_EQ(first.rounds[1].outgoing, (std::vector<int64_t>{0, 0}));
  EXPECT_EQ(second.rounds[0].outgoing, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(second.rounds[1].outgoing, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(second.rounds[1].packing, (std::vector<RowBlock>{{3, 0, 2}}));
  EXPECT_EQ(first.rounds[0].offsets, (std::vector<int64_t>{0, 3, 3}));
  EXPECT_EQ(second.rounds[0].offsets, (std::vector<int64_t>{0, 2, 5}));
  EXPECT_EQ(second.rounds[0].grouping, (std::vector<RowBlock>{{0, 0, 2}, {2, 2, 2}, {4, 4, 1}}));
  EXPECT_EQ(second.rounds[1].offsets, (std::vector<int64_t>{0, 0, 2}));
}

// What counting mode assumes: nobody sends or gets more than another, and one round is enough.
TEST(EvenLoad, LoadsEveryRankAlike) {
  for (const int ranks : {1, 2, 3, 4}) {
    for (const int64_t local : {1, 2, 5}) {
      for (const int64_t entries : {1, 2, 7, 30, 64}) {
        SCOPED_TRACE(concat(entries, " rows, ", ranks, " x ", local, " experts"));
        const std::vector<int32_t> counts = even_load(entries, ranks, ranks * local);
        expect_complete_routes(counts, ranks, 1);
        const TokenRoutes routes = route_tokens(counts, ranks, ranks - 1, 1);
        ASSERT_EQ(routes.rounds.size(), 1u);
        const TokenRound& round = routes.rounds[0];
        EXPECT_EQ(std::accumulate(round.incoming.begin(), round.incoming.end(), 0), entries);
        EXPECT_EQ(std::accumulate(round.outgoing.begin(), round.outgoing.end(), 0), entries);
        for (const int32_t count : counts) EXPECT_LE(count, entries / (ranks * local) + 1);
      }
    }
  }
}

TEST(RouteTokens, RefusesCountsThatCannotBe) {
  EXPECT_THROW(route_tokens(std::vector<int32_t>{1, 2, 3}, 2, 0, 1), Error);
  EXPECT_THROW(route_tokens(std::vector<int32_t>{1, -1, 0, 0}, 2, 0, 1), Error);
}

// What a row is: its source, expert and number, in a value that f32 holds.
double identity(int rank, int64_t expert, int64_t index) {
  return double((rank * 64 + expert) * 64 + index);
}

// What expert `expert` makes of a value.
double result(double value, int64_t expert) { return 2 * value + double(expert) / 128; }

// Rows of one rank, sorted by expert, and what came back.
struct SortedRows {
  static constexpr int64_t D = 3, kDropped = 2;  // rows that no expert takes lie at the end

  SortedRows(const Communicator& group, const Load& load, int64_t X) : counts({X}, DType::i32) {
    for (int64_t e = 0; e < X; ++e) {
      counts.set(e, load(group.rank(), e));
      for (int64_t i = 0; i < load(group.rank(), e); ++i) {
        ids.push_back(identity(group.rank(), e, i));
        experts.push_back(e);
      }
    }
    entries = int64_t(ids.size()) + kDropped;
    rows = Tensor({entries, D}, DType::f32);
    back = Tensor({entries, D}, DType::f32);
    for (int64_t i = 0; i < int64_t(ids.size()) * D; ++i) rows.set(i, ids[i / D] + (i % D) / 4.0);
  }
  void expect_back() const {
    const int64_t sent = int64_t(ids.size()) * D;
    for (int64_t i = 0; i < sent; ++i) {
      EXPECT_EQ(back.get(i), result(rows.get(i), experts[i / D])) << "row " << i / D;
    }
    for (int64_t i = sent; i < entries * D; ++i) {
      EXPECT_TRUE(std::isnan(back.get(i))) << "a row that nobody sent was written";
    }
  }
  Tensor counts, rows, back;
  std::vector<double> ids;
  std::vector<int64_t> experts;
  int64_t entries = 0;
};

// Every row of a group is for that expert; within a group they are in order of source and number.
void apply_experts(const std::vector<int64_t>& offsets, int64_t first_expert, Tensor& grouped) {
  const int64_t D = SortedRows::D;
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    double last = -1;
    for (int64_t i = offsets[e] * D; i < offsets[e + 1] * D; ++i) {
      const double value = grouped.get(i);
      EXPECT_EQ(int64_t(value) / 64 % 64, first_expert + int64_t(e));
      EXPECT_GT(value, last);
      last = value;
      grouped.set(i, result(value, first_expert + int64_t(e)));
    }
  }
}

void there_and_back(Communicator& group, const Load& load, int64_t local, double factor) {
  TestContext test_context(size_t{1} << 16);
  const Context& ctx = test_context;
  const int64_t X = group.size() * local;
  const TokenExchange exchange(group, X, factor);
  SortedRows sorted(group, load, X);
  Tensor all({group.size(), X}, DType::i32);
  exchange.begin_counts(sorted.counts, all).wait();
  const TokenRoutes routes = exchange.routes(ctx, all, sorted.entries);
  if (!exchange.may_overflow()) {
    EXPECT_EQ(routes.rounds.size(), 1u);
  }
  for (size_t round = 0; round < routes.rounds.size(); ++round) {
    const ArenaScope scope(*ctx.scratch);
    Tensor grouped({routes.room, SortedRows::D}, DType::f32);
    exchange.finish(ctx, exchange.begin_dispatch(ctx, routes, round, sorted.rows, grouped));
    apply_experts(routes.rounds[round].offsets, group.rank() * local, grouped);
    exchange.finish(ctx, exchange.begin_return(ctx, routes, round, grouped, sorted.back));
  }
  sorted.expect_back();
}

class Exchange : public OnBackend {};

TEST_P(Exchange, RowsReachTheirExpertsAndComeBack) {
  run([](Communicator& group) {
    for (const NamedLoad& load : loads()) {
      for (const int64_t local : {1, 3}) {
        for (const double factor : {1.0, 1.25, 64.0}) {
          SCOPED_TRACE(concat(load.name, ", ", local, " experts here, factor ", factor));
          there_and_back(group, load.load, local, factor);
        }
      }
    }
  });
}

// Counting mode moves the expectation; an even load moves as much, in the same memory.
TEST_P(Exchange, PlansAnEvenLoad) {
  run([](Communicator& group) {
    const int64_t X = group.size() * 2, per_expert = 4, entries = X * per_expert, D = 5;
    const auto pass = [&](const Context& ctx, Communicator& ranks) {
      const std::array<Traffic, 2> before = {ranks.traffic(Verb::all_gather),
                                             ranks.traffic(Verb::all_to_all_v)};
      const TokenExchange exchange(ranks, X, 1.5);
      const ArenaScope scope(*ctx.scratch);
      const TensorView counts = ctx.scratch->alloc({X}, DType::i32);
      const TensorView all = ctx.scratch->alloc({ranks.size(), X}, DType::i32);
      if (!ctx.counting()) std::fill_n(counts.as<int32_t>(), X, int32_t(per_expert));
      exchange.begin_counts(counts, all).wait();
      const TokenRoutes routes = exchange.routes(ctx, all, entries);
      const TensorView rows = ctx.scratch->alloc({entries, D}, DType::f32);
      const TensorView grouped = ctx.scratch->alloc({routes.room, D}, DType::f32);
      EXPECT_EQ(routes.rounds.size(), 1u);
      exchange.finish(ctx, exchange.begin_dispatch(ctx, routes, 0, rows, grouped));
      exchange.finish(ctx, exchange.begin_return(ctx, routes, 0, grouped, rows));
      std::vector<int64_t> moved;
      for (const auto& [verb, old] :
           {std::pair{Verb::all_gather, before[0]}, std::pair{Verb::all_to_all_v, before[1]}}) {
        const Traffic now = ranks.traffic(verb);
        moved.insert(moved.end(), {now.calls - old.calls, now.contributed - old.contributed,
                                   now.sent - old.sent, now.received - old.received});
      }
      return moved;
    };
    TestContext ctx(size_t{1} << 16);
    Arena saved = Arena::counting("saved", kCpu), scratch = Arena::counting("scratch", kCpu);
    const Context counting{
        .device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
    const auto planned = make_planned_communicator(group.size(), group.rank());
    const std::vector<int64_t> expected = pass(counting, *planned);
    EXPECT_EQ(pass(ctx, group), expected);
    EXPECT_EQ(ctx.scratch().peak(), scratch.peak());
    const int64_t n = group.size();
    EXPECT_EQ(expected[1], n == 1 ? 0 : X * 4);                              // counts
    EXPECT_EQ(expected[5], n == 1 ? 0 : 2 * entries * (n - 1) / n * D * 4);  // rows, both ways
  });
}

// The same rows by fixed slots, of which nothing but the fullest expert's load must be known.
void there_and_back_in_slots(Communicator& group, const Load& load, int64_t local,
                             int64_t spare_slots) {
  TestContext test_context(size_t{1} << 16);
  const Context& ctx = test_context;
  const int64_t X = group.size() * local;
  SortedRows sorted(group, load, X);
  const std::vector<int32_t> counts = all_counts(load, group.size(), X);
  const int64_t slots =
      std::max<int64_t>(1, *std::max_element(counts.begin(), counts.end())) + spare_slots;
  Tensor all({group.size(), X}, DType::i32), offsets({X + 1}, DType::i64);
  TokenExchange(group, X, 1).begin_counts(sorted.counts, all).wait();
  offsets.set(0, 0);
  for (int64_t e = 0; e < X; ++e) offsets.set(e + 1, offsets.get(e) + sorted.counts.get(e));

  const SlotExchange exchange(group, X);
  const SlotExchange::Route route = exchange.route(ctx, slots, offsets, sorted.counts, all);
  Tensor grouped({exchange.room(route), SortedRows::D}, DType::f32);
  const ArenaScope scope(*ctx.scratch);
  exchange.finish_dispatch(ctx, route, exchange.begin_dispatch(ctx, route, sorted.rows), grouped);
  const int64_t* const groups = route.offsets.as<int64_t>();
  apply_experts(std::vector<int64_t>(groups, groups + local + 1), group.rank() * local, grouped);
  exchange.finish_return(ctx, route, exchange.begin_return(ctx, route, grouped), sorted.back);
  sorted.expect_back();
}

TEST_P(Exchange, RowsInSlotsReachTheirExpertsAndComeBack) {
  run([](Communicator& group) {
    for (const NamedLoad& load : loads()) {
      for (const int64_t local : {1, 3}) {
        for (const int64_t spare : {0, 2}) {
          SCOPED_TRACE(concat(load.name, ", ", local, " experts here, ", spare, " slots to spare"));
          there_and_back_in_slots(group, load.load, local, spare);
        }
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, Exchange, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace sluice::test
