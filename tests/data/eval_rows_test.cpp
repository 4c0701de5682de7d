#include <gtest/gtest.h>

#include "data/dataset.h"
#include "tests/data/data_support.h"

namespace sluice::test {
namespace {

TEST(EvalRows, EveryTokenWithAPredecessorIsATargetOnce) {
  const TempFolder folder;
  const Documents documents = {{1, 2, 3}, {}, {4}, {5, 6, 7, 8, 9}, {10, 11}};
  write_store(folder / "x.h5", plain_header(100, 99), documents);
  std::vector<int32_t> expected;  // in the stored order: all but each document's first
  for (auto document : documents) {
    document.push_back(99);
    expected.insert(expected.end(), document.begin() + 1, document.end());
  }
  TokenStore store(folder / "x.h5");
  ASSERT_EQ(store.num_tokens(), 16);
  for (int64_t seq_len = 1; seq_len <= 20; ++seq_len) {
    EvalRows rows(store, seq_len);
    EXPECT_EQ(rows.num_rows(), (15 + seq_len - 1) / seq_len);
    EXPECT_EQ(rows.num_targets(), int64_t(expected.size()));
    EXPECT_EQ(rows.num_text_targets(), 7);  // 2, 3, 6, 7, 8, 9, 11
    std::vector<int32_t> targets;
    int64_t num_targets = 0;
    // Two rows more than there are: padding only.
    for (int64_t row = 0; row < rows.num_rows() + 2; ++row) {
      const Batch batch = rows.batch(row, 1);
      num_targets += batch.num_targets();
      for (int64_t t = 0; t < seq_len; ++t) {
        const int32_t target = batch.targets().as<int32_t>()[t];
        const int32_t token = batch.tokens().as<int32_t>()[t];
        const int32_t begin = batch.rows().doc_begin.as<int32_t>()[t];
        EXPECT_LE(begin, t);
        EXPECT_LE(0, token);
        EXPECT_LT(token, 100);
        if (target >= 0) targets.push_back(target);
      }
    }
    EXPECT_EQ(targets, expected) << "rows of " << seq_len;
    EXPECT_EQ(num_targets, rows.num_targets());
  }
}

TEST(EvalRows, PaddingIsADocumentOfItsOwn) {
  const TempFolder folder;
  write_store(folder / "x.h5", plain_header(100, 99), {{1, 2}});
  TokenStore store(folder / "x.h5");
  const Batch batch = EvalRows(store, 5).batch(0, 1);
  const std::vector<int32_t> tokens = {1, 2, 99, 99, 99};
  const std::vector<int32_t> targets = {2, 99, -1, -1, -1};
  const std::vector<int32_t> doc_begin = {0, 0, 0, 3, 3};
  for (size_t t = 0; t < 5; ++t) {
    EXPECT_EQ(batch.tokens().as<int32_t>()[t], tokens[t]);
    EXPECT_EQ(batch.targets().as<int32_t>()[t], targets[t]);
    EXPECT_EQ(batch.rows().doc_begin.as<int32_t>()[t], doc_begin[t]);
  }
}

}  // namespace
}  // namespace sluice::test
