#include "data/sampler.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "data/prefetch.h"
#include "kernels/core/rng.h"
#include "tests/data/data_support.h"

namespace sluice::test {
namespace {

constexpr int32_t kEnd = 0;

std::vector<int32_t> values_of(const ConstTensorView& view) {
  const int32_t* data = view.as<int32_t>();
  return std::vector<int32_t>(data, data + view.numel());
}

// Documents of pseudo-random lengths (0 too) whose tokens are all different: 1, 2, 3, ...
Documents distinct_documents(int64_t count, uint64_t seed, uint64_t max_length = 12) {
  Documents documents;
  int32_t next = 1;
  for (int64_t d = 0; d < count; ++d) {
    auto& document = documents.emplace_back(random_below({.seed = seed}, uint64_t(d), max_length));
    for (int32_t& id : document) id = next++;
  }
  return documents;
}

class Corpus {
 public:
  explicit Corpus(const Documents& documents, int64_t vocab_size = 100'000)
      : documents_(documents) {
    write_store(path(), plain_header(vocab_size, kEnd), documents);
  }
  std::string path() const { return folder_ / "x.h5"; }
  const Documents& documents() const { return documents_; }
  int64_t num_tokens() const {
    int64_t count = 0;
    for (const auto& document : documents_) count += int64_t(document.size()) + 1;
    return count;
  }
  Sampler sampler(const SamplerOptions& options) const {
    std::vector<SamplerSource> sources(1);
    sources[0].store = std::make_unique<TokenStore>(path());
    return Sampler(std::move(sources), options);
  }

 private:
  TempFolder folder_;
  Documents documents_;
};

// The inputs of the run's first `num_rows` rows, back to back, one row a step.
std::vector<int32_t> stream_of(Sampler& sampler, int64_t num_rows) {
  std::vector<int32_t> stream;
  for (int64_t row = 0; row < num_rows; ++row) {
    const Batch batch = sampler.batch(row, 0, 1);
    const std::vector<int32_t> tokens = values_of(batch.tokens());
    stream.insert(stream.end(), tokens.begin(), tokens.end());
  }
  return stream;
}

Documents split_at_end_marks(const std::vector<int32_t>& stream) {
  Documents documents(1);
  for (const int32_t token : stream) {
    if (token == kEnd) {
      documents.emplace_back();
    } else {
      documents.back().push_back(token);
    }
  }
  EXPECT_TRUE(documents.back().empty());
  documents.pop_back();
  return documents;
}

TEST(Sampler, EveryEpochHoldsEveryDocumentOnce) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const Corpus corpus(distinct_documents(30 + int64_t(seed), seed));
    const int64_t epoch = corpus.num_tokens();
    const int64_t seq_len = 7;
    // As many rows as there are tokens make seq_len whole epochs.
    Sampler sampler = corpus.sampler({.seq_len = seq_len, .global_batch = 1, .seed = seed});
    const std::vector<int32_t> stream = stream_of(sampler, epoch);
    std::set<Documents> orders;
    for (int64_t e = 0; e < seq_len; ++e) {
      const std::vector<int32_t> part(stream.begin() + e * epoch, stream.begin() + (e + 1) * epoch);
      const Documents order = split_at_end_marks(part);
      Documents sorted = order;
      Documents expected = corpus.documents();
      std::sort(sorted.begin(), sorted.end());
      std::sort(expected.begin(), expected.end());
      EXPECT_EQ(sorted, expected) << "seed " << seed << ", epoch " << e;
      orders.insert(order);
    }
    EXPECT_EQ(orders.size(), size_t(seq_len));  // all epochs differ
    Sampler other = corpus.sampler({.seq_len = seq_len, .global_batch = 1, .seed = seed + 100});
    EXPECT_NE(stream_of(other, epoch), stream);
  }
}

// Targets, boundaries and positions, derived again from the stream of inputs alone.
TEST(Sampler, TargetsAndBoundariesFollowFromTheStream) {
  for (const int64_t seq_len : {1, 2, 5, 16, 64}) {
    const Corpus corpus(distinct_documents(25, 9));
    Sampler sampler = corpus.sampler({.seq_len = seq_len, .global_batch = 1, .seed = 3});
    const int64_t num_rows = 3 * corpus.num_tokens() / seq_len + 2;
    const std::vector<int32_t> stream = stream_of(sampler, num_rows + 1);
    for (int64_t row = 0; row < num_rows; ++row) {
      const Batch batch = sampler.batch(row, 0, 1);
      const std::vector<int32_t> targets = values_of(batch.targets());
      const std::vector<int32_t> doc_begin = values_of(batch.rows().doc_begin);
      int32_t begin = 0;
      int64_t num_targets = 0;
      for (int64_t t = 0; t < seq_len; ++t) {
        const size_t at = size_t(row * seq_len + t);
        if (t > 0 && stream[at - 1] == kEnd) begin = int32_t(t);
        ASSERT_EQ(doc_begin[size_t(t)], begin);
        ASSERT_EQ(targets[size_t(t)], stream[at] == kEnd ? -1 : stream[at + 1]);
        num_targets += stream[at] == kEnd ? 0 : 1;
      }
      ASSERT_EQ(batch.num_targets(), num_targets);
      ASSERT_EQ(sampler.count_targets(row), num_targets);
    }
  }
}

TEST(Sampler, RowsDoNotDependOnRanksOrOrder) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const Corpus corpus(distinct_documents(40, seed));
    const SamplerOptions options{.seq_len = 11, .global_batch = 12, .seed = seed};
    Sampler whole = corpus.sampler(options);
    for (const int64_t ranks : {1, 2, 3, 4, 12}) {
      Sampler part = corpus.sampler(options);  // no call before
      for (const int64_t step : {17, 0, 5, 100}) {
        const Batch all = whole.batch(step, 0, 12);
        int64_t num_targets = 0;
        for (int64_t rank = ranks - 1; rank >= 0; --rank) {
          const int64_t rows = 12 / ranks;
          const Batch batch = part.batch(step, rank * rows, rows);
          EXPECT_EQ(batch.rows().first_row, rank * rows);
          const std::vector<int32_t> mine = values_of(batch.tokens());
          EXPECT_TRUE(
              std::equal(mine.begin(), mine.end(), all.tokens().as<int32_t>() + rank * rows * 11));
          num_targets += batch.num_targets();
        }
        EXPECT_EQ(num_targets, all.num_targets());
        EXPECT_EQ(num_targets, part.count_targets(step));
      }
    }
  }
}

TEST(Sampler, SequenceShardsMakeUpTheRow) {
  const Corpus corpus(distinct_documents(40, 2));
  Sampler sampler = corpus.sampler({.seq_len = 13, .global_batch = 3, .seed = 1});
  const Batch whole = sampler.batch(4, 0, 3);
  for (const int64_t size : {1, 2, 3, 5, 13}) {
    int64_t num_targets = 0;
    for (int64_t rank = 0; rank < size; ++rank) {
      const Batch part = sampler.batch(4, 0, 3, {.rank = rank, .size = size});
      const Rows& rows = part.rows();
      EXPECT_EQ(rows.cuts, sequence_cuts(13, size));
      EXPECT_EQ(rows.begin, rows.cuts[size_t(rank)]);
      EXPECT_EQ(rows.row_tokens, 13);
      EXPECT_EQ(values_of(rows.doc_begin), values_of(whole.rows().doc_begin));
      for (int64_t b = 0; b < 3; ++b) {
        for (int64_t t = 0; t < rows.tokens; ++t) {
          const int64_t from = b * 13 + rows.begin + t;
          const int64_t to = b * rows.tokens + t;
          const int32_t doc_begin = whole.rows().doc_begin.as<int32_t>()[from];
          ASSERT_EQ(part.tokens().as<int32_t>()[to], whole.tokens().as<int32_t>()[from]);
          ASSERT_EQ(part.targets().as<int32_t>()[to], whole.targets().as<int32_t>()[from]);
          ASSERT_EQ(rows.local_doc_begin.as<int32_t>()[to], doc_begin - rows.begin);
          ASSERT_EQ(rows.positions.as<int32_t>()[to], rows.begin + t - doc_begin);
        }
      }
      num_targets += part.num_targets();
    }
    EXPECT_EQ(num_targets, whole.num_targets());
  }
}

// Every row of the batch has a stream of its own that goes on from step to step.
TEST(Sampler, RowsGoOnFromStepToStepWhereStateIsCarried) {
  const Corpus corpus(distinct_documents(40, 2, 30));
  const int64_t T = 5, rows = 3, steps = 2 * corpus.num_tokens() / T;
  const SamplerOptions options{.seq_len = T, .global_batch = rows, .seed = 1, .carry_state = true};
  Sampler sampler = corpus.sampler(options);
  for (int64_t b = 0; b < rows; ++b) {
    int32_t last = -2;      // the token before, -2: the row has none
    int64_t position = -1;  // of it in its document, counted from where the row's stream began
    int32_t target = -1;
    for (int64_t step = 0; step < steps; ++step) {
      const Batch batch = sampler.batch(step, b, 1);
      for (int64_t t = 0; t < T; ++t) {
        const int32_t token = batch.tokens().as<int32_t>()[t];
        if (target >= 0) {
          ASSERT_EQ(token, target) << "row " << b << ", step " << step;
        }
        position = last == kEnd ? 0 : position + 1;
        ASSERT_EQ(batch.rows().positions.as<int32_t>()[t], position);
        ASSERT_EQ(batch.rows().doc_begin.as<int32_t>()[t], t - position);
        last = token;
        target = batch.targets().as<int32_t>()[t];
        ASSERT_EQ(target < 0, token == kEnd);
      }
      if (b == 0) {
        ASSERT_EQ(sampler.batch(step, 0, rows).num_targets(), sampler.count_targets(step));
      }
    }
  }
}

TEST(Sampler, CarriedRowsReadEveryTokenOfAnEpochOnce) {
  const Corpus corpus(distinct_documents(200, 3));
  const int64_t rows = 4, of_row = corpus.num_tokens() / rows;
  Sampler sampler =
      corpus.sampler({.seq_len = 1, .global_batch = rows, .seed = 1, .carry_state = true});
  std::multiset<int32_t> seen;
  for (int64_t step = 0; step < of_row; ++step) {
    for (const int32_t token : values_of(sampler.batch(step, 0, rows).tokens()))
      if (token != kEnd) seen.insert(token);
  }
  EXPECT_EQ(std::set<int32_t>(seen.begin(), seen.end()).size(), seen.size());
  EXPECT_GE(int64_t(seen.size()), rows * of_row - 200);
}

TEST(Sampler, StoresAreDealtToCarriedRowsByWeight) {
  const Corpus small(distinct_documents(40, 2)), large(distinct_documents(60, 3));
  const auto make = [&](double weight, int64_t rows) {
    std::vector<SamplerSource> sources(2);
    sources[0] = {std::make_unique<TokenStore>(small.path()), weight};
    sources[1] = {std::make_unique<TokenStore>(large.path()), 1};
    return Sampler(std::move(sources), {.seq_len = 4, .global_batch = rows, .carry_state = true});
  };
  Sampler sampler = make(3, 8);
  std::set<std::vector<int32_t>> rows;
  for (int64_t b = 0; b < 8; ++b) rows.insert(values_of(sampler.batch(0, b, 1).tokens()));
  EXPECT_EQ(rows.size(), 8u);
  expect_error<UsageError>([&] { make(100, 8); }, {"carry_state", large.path(), "8 rows"});
}

TEST(Sampler, CutsGiveTheFirstRanksOneMore) {
  EXPECT_EQ(sequence_cuts(10, 4), (std::vector<int64_t>{0, 3, 6, 8, 10}));
  EXPECT_EQ(sequence_cuts(4, 4), (std::vector<int64_t>{0, 1, 2, 3, 4}));
  expect_error<UsageError>([] { sequence_cuts(3, 4); }, {"3 tokens", "4 sequence ranks"});
}

TEST(Sampler, AnotherGlobalBatchGoesOnWhereTheRunStood) {
  const Corpus corpus(distinct_documents(40, 2));
  Sampler before = corpus.sampler({.seq_len = 5, .global_batch = 4, .seed = 1});
  const int64_t cursor = before.row_of_step(10);
  Sampler after = corpus.sampler(
      {.seq_len = 5, .global_batch = 8, .seed = 1, .first_step = 10, .first_step_row = cursor});
  std::vector<int32_t> expected = values_of(before.batch(10, 0, 4).tokens());
  const std::vector<int32_t> second = values_of(before.batch(11, 0, 4).tokens());
  expected.insert(expected.end(), second.begin(), second.end());
  EXPECT_EQ(values_of(after.batch(10, 0, 8).tokens()), expected);
  EXPECT_THROW(after.batch(9, 0, 8), Error);
}

TEST(StorePicks, FollowTheWeightsAndAreRandomAccess) {
  const std::vector<double> weights = {1, 0.5, 2.5};
  StorePicks picks(weights, 7);
  std::vector<int64_t> counts(3);
  std::vector<StorePicks::Pick> all;
  const int64_t rows = 20'000;
  for (int64_t row = 0; row < rows; ++row) {
    all.push_back(picks.pick(row));
    ASSERT_EQ(all.back().row, counts[size_t(all.back().store)]);
    counts[size_t(all.back().store)] += 1;
  }
  for (size_t store = 0; store < 3; ++store) {
    const double share = weights[store] / 4;
    const double deviation = std::sqrt(share * (1 - share) * double(rows));
    EXPECT_NEAR(double(counts[store]), share * double(rows), 4 * deviation);
  }
  StorePicks fresh(weights, 7);
  for (const int64_t row : {9000, 3, 19'999, 4095, 4096, 4097, 0, 12'345}) {
    for (StorePicks* again : {&picks, &fresh}) {
      EXPECT_EQ(again->pick(row).store, all[size_t(row)].store);
      EXPECT_EQ(again->pick(row).row, all[size_t(row)].row);
    }
  }
  EXPECT_THROW(StorePicks({1, 0}, 1), UsageError);
  EXPECT_THROW(StorePicks({1, std::nan("")}, 1), UsageError);
}

TEST(Sampler, SeveralStoresKeepTheirOwnStreams) {
  const Corpus first(distinct_documents(20, 1));
  Documents shifted = distinct_documents(35, 2);
  for (auto& document : shifted)
    for (int32_t& id : document) id += 50'000;
  const Corpus second(shifted);
  const auto make = [&] {
    std::vector<SamplerSource> sources(2);
    sources[0] = {std::make_unique<TokenStore>(first.path()), 1};
    sources[1] = {std::make_unique<TokenStore>(second.path()), 3};
    return sources;
  };
  Sampler sampler(make(), {.seq_len = 8, .global_batch = 4, .seed = 5});
  std::vector<std::vector<int32_t>> streams(2);
  for (int64_t step = 0; step < 60; ++step) {
    const Batch batch = sampler.batch(step, 0, 4);
    EXPECT_EQ(sampler.count_targets(step), batch.num_targets());
    const std::vector<int32_t> tokens = values_of(batch.tokens());
    for (size_t row = 0; row < 4; ++row) {
      const auto begin = tokens.begin() + int64_t(row) * 8;
      const bool high = *std::max_element(begin, begin + 8) >= 50'000;
      streams[high].insert(streams[high].end(), begin, begin + 8);
    }
  }
  // Each store's rows, back to back, are its stream: whole documents, one epoch after another.
  for (size_t store = 0; store < 2; ++store) {
    TokenStore alone(store == 0 ? first.path() : second.path());
    PackedStream stream(alone, 5, int64_t(store));
    const int64_t num_rows = int64_t(streams[store].size()) / 8;
    ASSERT_GT(num_rows, 20);
    for (int64_t row = 0; row < num_rows; ++row) {
      const std::vector<int32_t> tokens = stream.row(row * 8, 8).tokens;
      ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), streams[store].begin() + row * 8));
    }
  }
  const Corpus other(distinct_documents(20, 1), 200'000);
  std::vector<SamplerSource> mixed = make();
  mixed[1].store = std::make_unique<TokenStore>(other.path());
  expect_error<UsageError>(
      [&] { Sampler(std::move(mixed), {.seq_len = 8, .global_batch = 4, .seed = 5}); },
      {"one tokenizer", other.path()});
  expect_error<UsageError>([&] { Sampler({}, {.seq_len = 8, .global_batch = 4, .seed = 5}); },
                           {"data.train"});
}

TEST(Prefetcher, GivesBatchesInOrderThenNothing) {
  const auto make = [](int64_t n) -> std::optional<Batch> {
    if (n == 20) return std::nullopt;
    return Batch(n, 1, 4, {});
  };
  Prefetcher prefetcher(make, 3);
  for (int64_t n = 0; n < 20; ++n) {
    const std::optional<Batch> batch = prefetcher.next();
    ASSERT_TRUE(batch.has_value());
    EXPECT_EQ(batch->rows().first_row, n);
  }
  EXPECT_FALSE(prefetcher.next().has_value());
  EXPECT_FALSE(prefetcher.next().has_value());
  EXPECT_GE(prefetcher.take_wait_seconds(), 0);
  EXPECT_EQ(prefetcher.take_wait_seconds(), 0);
}

TEST(Prefetcher, PassesErrorsOnAndStopsEarly) {
  const auto fail_at_two = [](int64_t n) -> std::optional<Batch> {
    if (n == 2) throw DataError("broken store");
    return Batch(n, 1, 4, {});
  };
  Prefetcher prefetcher(fail_at_two, 8);
  EXPECT_TRUE(prefetcher.next().has_value());
  EXPECT_TRUE(prefetcher.next().has_value());
  expect_error<DataError>([&] { prefetcher.next(); }, {"broken store"});
  const auto endless = [](int64_t n) -> std::optional<Batch> { return Batch(n, 1, 4, {}); };
  Prefetcher unused(endless, 2);  // its destructor must not hang
}

}  // namespace
}  // namespace sluice::test
