#include "trainer/checkpoint/prune.h"

#include "tests/trainer/checkpoint/checkpoint_support.h"

namespace sluice::test {
namespace {

class Prune : public ::testing::Test {
 protected:
  void save_steps(std::initializer_list<int64_t> steps) {
    for (const int64_t step : steps) save(folder_, step, small_model(1));
  }
  void damage(int64_t step) {
    fs::resize_file(folder_.path() + "/" + step_name(step) + "/model-0.h5", 10);
  }
  std::vector<int64_t> prune(int64_t keep) {
    const PruneReport report = CheckpointPruner(folder_, "test-1", keep).prune();
    EXPECT_TRUE(report.problems.empty());
    return list_steps(folder_);
  }
  using Steps = std::vector<int64_t>;

  TempFolder folder_;
};

TEST_F(Prune, KeepsTheNewest) {
  save_steps({1, 2, 3, 4, 5});
  EXPECT_EQ(prune(3), (Steps{5, 4, 3}));
  EXPECT_EQ(contents(folder_).count("latest"), 1u);
  EXPECT_TRUE(list_leftovers(folder_).empty());
}

TEST_F(Prune, NeverBelowTwo) {
  save_steps({1, 2, 3});
  EXPECT_EQ(prune(1), (Steps{3, 2}));
  EXPECT_EQ(prune(0), (Steps{3, 2}));
  EXPECT_EQ(prune(-1), (Steps{3, 2}));
}

TEST_F(Prune, OnlyGoodOnesCount) {
  save_steps({1, 2, 3, 4, 5});
  damage(5);
  damage(3);
  // 4 and 2 are the newest two that are good; what is damaged between them stays.
  EXPECT_EQ(prune(2), (Steps{5, 4, 3, 2}));
  damage(2);
  EXPECT_EQ(prune(2), (Steps{5, 4, 3, 2}));
}

TEST_F(Prune, ThisRunsOwnAreLookedAtForMissingFiles) {
  save_steps({1, 2, 3, 4});
  CheckpointPruner pruner(folder_, "test-1", 2);
  for (const int64_t step : {1, 2, 3, 4}) pruner.mark_good(step);
  fs::remove(folder_.path() + "/step-00000004/optim-0.h5");
  pruner.prune();
  EXPECT_EQ(list_steps(folder_), (Steps{4, 3, 2}));
}

TEST_F(Prune, LeavesOtherNamesAlone) {
  save_steps({1, 2, 3});
  fs::create_directory(folder_.path() + "/step-00000001.keep");
  fs::create_directory(folder_.path() + "/best");
  EXPECT_EQ(prune(2), (Steps{3, 2}));
  EXPECT_TRUE(fs::exists(folder_.path() + "/step-00000001.keep"));
  EXPECT_TRUE(fs::exists(folder_.path() + "/best"));
}

TEST_F(Prune, LinksAreRemovedNotFollowed) {
  save_steps({1, 2, 3});
  const TempFolder elsewhere;
  fs::rename(folder_.path() + "/step-00000001", elsewhere.path() + "/one");
  fs::create_directory_symlink(elsewhere.path() + "/one", folder_.path() + "/step-00000001");
  EXPECT_EQ(prune(2), (Steps{3, 2}));
  EXPECT_TRUE(fs::exists(elsewhere.path() + "/one/manifest.json"));
}

TEST_F(Prune, LeftoversOfDeadRunsGoAtTheStart) {
  save_steps({1});
  const auto before = contents(folder_);
  for (const char* name : {".step-00000002.dead.tmp", ".trash-step-00000000.dead"}) {
    fs::create_directory(folder_.path() + "/" + name);
    spit(folder_.path() + "/" + name + "/model-0.h5", "half");
  }
  spit(folder_.path() + "/.latest.77.0.tmp", "step");
  fs::create_directory(folder_.path() + "/.keep");
  const PruneReport report = remove_leftovers(folder_);
  EXPECT_EQ(report.removed.size(), 3u);
  EXPECT_TRUE(report.problems.empty());
  fs::remove(folder_.path() + "/.keep");  // throws unless it was left alone
  EXPECT_EQ(contents(folder_), before);
}

TEST_F(Prune, NewerOnesAreSetAsideNotLost) {
  save_steps({1, 2, 3});
  damage(3);
  const FoundCheckpoint found = find(folder_);
  EXPECT_EQ(found.checkpoint->manifest.state.step, 2);
  EXPECT_EQ(set_aside_newer(folder_, 2, "test-1").removed.size(), 1u);
  EXPECT_EQ(list_steps(folder_), (Steps{2, 1}));
  EXPECT_TRUE(fs::exists(folder_.path() + "/aside-step-00000003.test-1/manifest.json"));
  save_steps({3});  // the run's second way to step 3
  damage(3);
  EXPECT_EQ(set_aside_newer(folder_, 2, "test-1").removed.size(), 1u);
  EXPECT_TRUE(fs::exists(folder_.path() + "/aside-step-00000003.test-1-1/manifest.json"));
}

}  // namespace
}  // namespace sluice::test
