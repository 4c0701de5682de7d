#include "trainer/device_batch.h"

#include <gtest/gtest.h>

#include "tests/support/tensors.h"
#include "trainer/verify/synthetic_rows.h"

namespace sluice::test {
namespace {

std::vector<int32_t> tokens_of(const DeviceBatch& batch) {
  const ConstTensorView& tokens = batch.input().tokens;
  return {tokens.as<int32_t>(), tokens.as<int32_t>() + tokens.numel()};
}

TEST(DeviceBatch, KeepsThePresentBatchUntilTheNextIsCommitted) {
  TestContext context(0);
  const Context& ctx = context;
  const SyntheticRows rows{.seed = 2, .row_tokens = 12, .vocab_size = 50};
  DeviceBatch batch;
  batch.load(ctx, rows.batch(0, 0, 2, {}));
  const std::vector<int32_t> first = tokens_of(batch);
  batch.stage(ctx, rows.batch(1, 0, 2, {}), {});
  EXPECT_TRUE(batch.staged());
  EXPECT_EQ(tokens_of(batch), first);
  batch.commit(ctx);
  EXPECT_FALSE(batch.staged());
  const Batch second = rows.batch(1, 0, 2, {});
  EXPECT_NE(tokens_of(batch), first);
  EXPECT_EQ(tokens_of(batch)[23], second.tokens().as<int32_t>()[23]);
  EXPECT_EQ(batch.input().rows.rows, 2);
}

TEST(DeviceBatch, ForgetsWhatWasStaged) {
  TestContext context(0);
  const Context& ctx = context;
  const SyntheticRows rows{.seed = 2, .row_tokens = 12, .vocab_size = 50};
  DeviceBatch batch;
  batch.stage(ctx, rows.batch(0, 0, 1, {}), {});
  batch.discard_staged();
  EXPECT_THROW(batch.commit(ctx), Error);
}

}  // namespace
}  // namespace sluice::test
