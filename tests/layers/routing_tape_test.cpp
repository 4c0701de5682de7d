#include "layers/routing_tape.h"

#include <gtest/gtest.h>

#include "tests/support/batch.h"
#include "tests/support/errors.h"
#include "tests/support/layouts.h"

namespace sluice::test {
namespace {

constexpr int64_t B = 4, T = 7, k = 2;

Tensor some_choices(uint64_t seed) {
  Tensor experts({B, T, k}, DType::i32);
  experts.fill_below(seed, 8);
  return experts;
}

TEST(RoutingTape, WrittenOnOneLayoutIsReadOnAnother) {
  const TestRows batch(B, T);
  const Tensor experts = some_choices(1), other = some_choices(2);
  RoutingTape tape;
  run_layout({.dp = 2, .cp = 3}, [&](const Mesh& mesh) {
    const ShardRows shard(batch, mesh);
    for (const auto& [branch, choices] : {std::pair{1, &experts}, std::pair{4, &other}}) {
      tape.write(branch, shard, shard.cut(*choices));
      tape.write(branch, shard, shard.cut(*choices));  // a replay
    }
  });
  Tensor read({B, T, k}, DType::i32);
  run_layout({.dp = 4, .cp = 2}, [&](const Mesh& mesh) {
    const ShardRows shard(batch, mesh);
    Tensor part = shard.cut(experts);
    part.fill_below(9, 3);
    tape.read(1, shard, part);
    shard.paste(part, read);
  });
  EXPECT_TRUE(bit_equal(read, experts));
  tape.read(4, batch, read);
  EXPECT_TRUE(bit_equal(read, other));
}

TEST(RoutingTape, SaysWhatItDoesNotHave) {
  const TestRows batch(B, T);
  RoutingTape tape;
  const ShardRows first_half(batch, {0, B}, {0, 3, T}, 0);
  tape.write(0, first_half, first_half.cut(some_choices(1)));
  Tensor read({B, T, k}, DType::i32), three({B, T, 3}, DType::i32);
  expect_error<Error>([&] { tape.read(0, batch, read); }, {"token 3", "row 0", "branch 0"});
  expect_error<Error>([&] { tape.read(2, batch, read); }, {"row 0", "branch 2"});
  expect_error<Error>([&] { tape.read(0, batch, three); }, {"3 choices"});
}

TEST(RoutingTape, CountsTheChoicesThatDiffer) {
  const TestRows batch(B, T);
  RoutingTape one, two, less;
  Tensor experts({B, T, k}, DType::i32);
  for (int64_t i = 0; i < experts.numel(); ++i) experts.set(i, double(i % k));
  one.write(3, batch, experts);
  experts.set(0, 1);  // the same two experts in another order
  experts.set(1, 0);
  experts.set((2 * T + 5) * k + 1, 6);
  two.write(3, batch, experts);
  const RoutingTape::Comparison same = RoutingTape::compare(one, one);
  EXPECT_EQ(same.choices, B * T * k);
  EXPECT_EQ(same.flipped, 0);
  EXPECT_EQ(same.first, "");
  const RoutingTape::Comparison flipped = RoutingTape::compare(one, two);
  EXPECT_EQ(flipped.flipped, 1);
  EXPECT_EQ(flipped.first, "branch 3, row 2, token 5");
  EXPECT_THROW(RoutingTape::compare(one, less), Error);
  const ShardRows shard(batch, {0, B}, {0, 3, T}, 0);
  less.write(3, shard, shard.cut(experts));
  expect_error<Error>([&] { RoutingTape::compare(one, less); }, {"token 3"});
}

}  // namespace
}  // namespace sluice::test
