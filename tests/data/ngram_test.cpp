#include "data/ngram.h"

#include <gtest/gtest.h>

#include <cmath>

#include "data/dataset.h"
#include "tests/data/data_support.h"

namespace sluice::test {
namespace {

constexpr int32_t kEnd = ByteTokenizer::kEndOfDocument;

TEST(ByteNgram, HandComputed) {
  const TempFolder folder;
  write_text_store(folder / "train.h5", {"ab", "ac"});
  TokenStore train(folder / "train.h5");
  ByteNgram model;
  EXPECT_DOUBLE_EQ(model.probability(-1, 'a', 'b'), 1.0 / 257);  // knows nothing yet
  model.train(train);
  // Predicted are b, end, c, end. p1(end) = (2 + 3/257) / (4 + 3).
  const double p1_end = (2 + 3.0 / 257) / 7;
  const double p1_b = (1 + 3.0 / 257) / 7;
  // After a: b and c, once each.
  const double p2_b = (1 + 2 * p1_b) / 4;
  EXPECT_DOUBLE_EQ(model.probability(-1, 'a', 'b'), p2_b);
  EXPECT_DOUBLE_EQ(model.probability('x', 'a', 'b'), p2_b);  // x a was never seen
  // After b only the end, once; after a b as well.
  const double p2_end = (1 + p1_end) / 2;
  EXPECT_DOUBLE_EQ(model.probability('a', 'b', kEnd), (1 + p2_end) / 2);

  write_text_store(folder / "valid.h5", {"ab", "", "x"});
  TokenStore valid(folder / "valid.h5");
  const NgramScore score = model.score(valid);
  EXPECT_EQ(score.targets, 3);  // b, end; nothing; end after x
  EXPECT_EQ(score.bytes, 1);
  const double bits =
      -std::log2(p2_b) - std::log2((1 + p2_end) / 2) - std::log2(p1_end);  // x was never seen
  EXPECT_NEAR(score.bits, bits, 1e-12);
  EXPECT_NEAR(score.bits_per_byte(), bits, 1e-12);
}

TEST(ByteNgram, ProbabilitiesSumToOne) {
  const TempFolder folder;
  write_text_store(folder / "x.h5", {"the cat sat on the mat", "that hat", "a"});
  TokenStore store(folder / "x.h5");
  ByteNgram model;
  model.train(store);
  for (const auto& [before2, before] : std::vector<std::pair<int32_t, int32_t>>{
           {'t', 'h'}, {-1, 't'}, {'z', 't'}, {'z', 'z'}, {'a', 't'}}) {
    double sum = 0;
    for (int32_t next = 0; next < 257; ++next) sum += model.probability(before2, before, next);
    EXPECT_NEAR(sum, 1, 1e-12);
  }
}

TEST(ByteNgram, CountsWhatTheModelsEvaluationCounts) {
  const TempFolder folder;
  std::string text;
  for (int i = 0; i < 200'000; ++i) text += "abcab"[i % 5];  // over the size of a piece
  write_text_store(folder / "x.h5", {text, "", "b", text});
  TokenStore store(folder / "x.h5");
  ByteNgram model;
  model.train(store);
  const NgramScore score = model.score(store);
  const EvalRows rows(store, 64);
  EXPECT_EQ(score.targets, rows.num_targets());
  EXPECT_EQ(score.bytes, rows.num_text_targets());
  // After a b come c and a in turn: 1 bit for two of five bytes, and hardly any for the others.
  EXPECT_NEAR(score.bits_per_byte(), 0.4, 0.01);
}

TEST(ByteNgram, RefusesOtherTokenizers) {
  const TempFolder folder;
  write_store(folder / "x.h5", plain_header(300, 256), {{1, 2}});
  TokenStore store(folder / "x.h5");
  ByteNgram model;
  expect_error<UsageError>([&] { model.train(store); }, {"3-gram", "plain", "300"});
}

}  // namespace
}  // namespace sluice::test
