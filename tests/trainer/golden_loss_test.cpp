// The losses of 20 steps, as they have always been: a change that is meant to keep the numbers
// keeps these. tests/golden/update_losses writes the file anew where one means to change them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "parallel/self_communicator.h"
#include "tests/support/tiny_run.h"
#include "tests/support/tolerance.h"
#include "trainer/trainer.h"

namespace sluice::test {
namespace {

const std::string kFile = std::string(SLUICE_SOURCE_DIR) + "/tests/golden/losses.json";
// All mixers; and experts.
constexpr const char* kStacks[] = {"SM*-", "ME*-"};
constexpr int64_t kSteps = 20;

std::vector<double> losses_of(const char* stack) {
  TinyRun run(stack);
  run.config.train.steps = kSteps;
  const auto world = make_self_communicator();
  Mesh mesh(*world, {});
  Trainer trainer(run.config, mesh);
  std::vector<double> losses;
  for (int64_t step = 0; step < kSteps; ++step) losses.push_back(trainer.step().loss);
  return losses;
}

// Hex floats: to the last bit.
void write_losses() {
  nlohmann::ordered_json file;
  for (const char* stack : kStacks) {
    for (const double loss : losses_of(stack)) file[stack].push_back(fmt::format("{:a}", loss));
  }
  std::ofstream(kFile) << file.dump(2) << "\n";
}

TEST(GoldenLoss, TwentyStepsOfTinyHybrids) {
  if (std::getenv("SLUICE_UPDATE_GOLDEN") != nullptr) {
    write_losses();
    GTEST_SKIP() << "wrote " << kFile;
  }
  const nlohmann::json file = nlohmann::json::parse(read_text(kFile));
  for (const char* stack : kStacks) {
    const auto expected = file.at(stack).get<std::vector<std::string>>();
    const std::vector<double> losses = losses_of(stack);
    ASSERT_EQ(losses.size(), expected.size());
    for (size_t step = 0; step < losses.size(); ++step) {
      const double golden = std::strtod(expected[step].c_str(), nullptr);
      EXPECT_NEAR(losses[step], golden, kGoldenLoss * golden) << stack << ", step " << step + 1;
    }
  }
}

}  // namespace
}  // namespace sluice::test
