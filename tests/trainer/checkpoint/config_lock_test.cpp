#include "trainer/checkpoint/config_lock.h"

#include "tests/trainer/checkpoint/checkpoint_support.h"

namespace sluice::test {
namespace {

TEST(ConfigLock, EveryKeyHasItsRule) {
  for (const char* key : {"model.d_model", "model", "model.branches[0].type", "seed", "data.train",
                          "data.train.0.path", "data.train[1].path", "data.tokenizer"})
    EXPECT_EQ(rule_of(key), ConfigRule::locked) << key;
  for (const char* key :
       {"optimizer.lr", "schedule.warmup", "train.seq_len", "train.global_batch",
        "data.train.0.weight", "data.train[1].weight", "precision", "train.reproducible",
        "unheard_of", "model.attention.backend", "model.stack.branches[3].backend"})
    EXPECT_EQ(rule_of(key), ConfigRule::logged) << key;
  for (const char* key :
       {"train.steps", "train.micro_batch", "train.recompute", "train.eval_every", "parallel.dp",
        "device", "checkpoint.every", "log.tensorboard", "name", "data.valid"})
    EXPECT_EQ(rule_of(key), ConfigRule::free) << key;
  // Sections are whole words.
  EXPECT_EQ(rule_of("modeler.size"), ConfigRule::logged);
  EXPECT_EQ(rule_of("seedling"), ConfigRule::logged);
}

TEST(ConfigLock, SortsDifferences) {
  const FlatConfig saved{{"model.d_model", "768"},
                         {"optimizer.lr", "0.001"},
                         {"train.steps", "9"},
                         {"seed", "1"},
                         {"model.rope", "true"}};
  const FlatConfig present{{"model.d_model", "512"},
                           {"optimizer.lr", "0.002"},
                           {"train.steps", "10"},
                           {"seed", "1"},
                           {"model.window", "64"}};
  const ConfigComparison comparison = compare_configs(saved, present);
  ASSERT_EQ(comparison.locked.size(), 3u);
  EXPECT_EQ(describe(comparison.locked[0]), "model.d_model: 768 in the checkpoint, 512 now");
  EXPECT_EQ(describe(comparison.locked[1]), "model.rope: true in the checkpoint, absent now");
  EXPECT_EQ(describe(comparison.locked[2]), "model.window: absent in the checkpoint, 64 now");
  ASSERT_EQ(comparison.logged.size(), 1u);
  EXPECT_EQ(comparison.logged[0].key, "optimizer.lr");
  ASSERT_EQ(comparison.free.size(), 1u);
  EXPECT_EQ(comparison.free[0].key, "train.steps");
}

TEST(ConfigLock, TheErrorNamesTheFirstKeys) {
  FlatConfig saved;
  FlatConfig present;
  for (char letter = 'a'; letter < 'h'; ++letter) {
    saved[std::string("model.") + letter] = "1";
    present[std::string("model.") + letter] = "2";
  }
  const std::string message = error_of(
      [&] { require_same_locked(compare_configs(saved, present), "runs/x/step-00000010"); },
      ExitCode::usage);
  EXPECT_TRUE(contains(message, "runs/x/step-00000010 is of another run")) << message;
  EXPECT_TRUE(contains(message, "model.a: 1 in the checkpoint, 2 now")) << message;
  EXPECT_TRUE(contains(message, "model.e")) << message;
  EXPECT_FALSE(contains(message, "model.f")) << message;
  EXPECT_TRUE(contains(message, "and 2 more")) << message;
  EXPECT_NO_THROW(require_same_locked(compare_configs(saved, saved), "x"));
}

}  // namespace
}  // namespace sluice::test
