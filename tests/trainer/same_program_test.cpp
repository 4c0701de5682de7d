#include "trainer/same_program.h"

#include <gtest/gtest.h>

#include <chrono>

#include "parallel/thread_communicator.h"
#include "tests/support/tiny_run.h"
#include "trainer/agreement.h"

namespace sluice::test {
namespace {

// What every rank is told, if it is told anything.
std::vector<std::string> told(int ranks, const std::function<FlatConfig(int)>& facts_of) {
  std::vector<std::string> messages(ranks);
  run_ranks(ranks, [&](Communicator& world) {
    CommunicatorPeers peers(world);
    try {
      require_same(peers, facts_of(world.rank()));
    } catch (const AgreedFailure& failure) {
      EXPECT_EQ(failure.code(), ExitCode::usage);
      messages[world.rank()] = failure.what();
    }
  });
  for (const std::string& message : messages) EXPECT_EQ(message, messages[0]);
  return messages;
}

TEST(SameProgram, EqualRanksGoOn) {
  const TinyRun tiny;
  FlatConfig facts = flat_config(tiny.config);
  facts.merge(program_facts());
  EXPECT_EQ(told(3, [&](int) { return facts; })[0], "");
}

TEST(SameProgram, DifferingKeysAreNamedWithTheirValuesAndRanks) {
  const TinyRun tiny;
  const std::string message = told(4, [&](int rank) {
    Config config = tiny.config;
    if (rank == 2) config.train.seq_len = 48;
    if (rank >= 1) config.seed = 8;
    FlatConfig facts = flat_config(config);
    facts["program.commit"] = rank == 3 ? "bbb" : "aaa";
    if (rank == 0) facts["only"] = "";
    return facts;
  })[0];
  for (const char* line :
       {"train.seq_len: 24 on ranks 0, 1, 3; 48 on rank 2", "seed: 7 on rank 0; 8 on ranks 1, 2, 3",
        "program.commit: aaa on ranks 0, 1, 2; bbb on rank 3",
        "only: none on rank 0; absent on ranks 1, 2, 3"}) {
    EXPECT_NE(message.find(line), std::string::npos) << line << " is not in\n" << message;
  }
  EXPECT_EQ(message.find("global_batch"), std::string::npos) << message;
}

TEST(SameProgram, ManyDifferencesAndRanksAreCutShort) {
  const std::string message = told(16, [&](int rank) {
    FlatConfig facts;
    for (int key = 0; key < 30; ++key) facts["key" + std::to_string(key)] = rank == 15 ? "b" : "a";
    return facts;
  })[0];
  EXPECT_NE(message.find("a on ranks 0, 1, 2, 3, 4, 5, 6, 7 and 7 more; b on rank 15"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("and 22 more"), std::string::npos) << message;
}

TEST(SameProgram, TheExecutableIsPartOfIt) {
  const FlatConfig facts = program_facts();
  EXPECT_EQ(facts.at("program.executable").size(), 32u);
  EXPECT_EQ(facts, program_facts());
}

}  // namespace
}  // namespace sluice::test
