#include "parallel/world.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

namespace sluice::test {
namespace {

Launcher launcher_of(const std::map<std::string, std::string>& variables) {
  return find_launcher([&](const char* variable) {
    const auto found = variables.find(variable);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(World, KnowsTheLaunchers) {
  EXPECT_EQ(launcher_of({}).name, "");
  EXPECT_EQ(launcher_of({}).size, 1);
  EXPECT_EQ(launcher_of({{"OMPI_COMM_WORLD_SIZE", "4"}}).size, 4);
  EXPECT_EQ(launcher_of({{"PMI_SIZE", "3"}}).size, 3);
  EXPECT_EQ(launcher_of({{"PMIX_RANK", "0"}}).size, 0);
  EXPECT_EQ(launcher_of({{"PMIX_RANK", "0"}, {"SLURM_STEP_NUM_TASKS", "8"}}).size, 8);
  // mpirun inside of Slurm starts its daemons as tasks, one a node.
  EXPECT_EQ(launcher_of({{"OMPI_COMM_WORLD_SIZE", "16"}, {"SLURM_STEP_NUM_TASKS", "2"}}).size, 16);
  // A batch script that runs one process by itself.
  const Launcher batch = launcher_of({{"SLURM_NTASKS", "8"}, {"SLURM_STEP_NUM_TASKS", "1"}});
  EXPECT_EQ(batch.name, "");
}

TEST(World, RefusesWhatContradictsItself) {
  EXPECT_THROW(launcher_of({{"OMPI_COMM_WORLD_SIZE", "four"}}), UsageError);
  EXPECT_THROW(launcher_of({{"OMPI_COMM_WORLD_SIZE", ""}}), UsageError);
  EXPECT_THROW(launcher_of({{"PMI_SIZE", "0"}}), UsageError);
  EXPECT_THROW(launcher_of({{"PMI_SIZE", "2x"}}), UsageError);
  EXPECT_THROW(launcher_of({{"SLURM_STEP_NUM_TASKS", "4"}}), UsageError);
}

TEST(World, WithoutALauncherIsOneRankWithoutMpi) {
  for (const char* variable :
       {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMIX_NAMESPACE", "SLURM_STEP_NUM_TASKS"})
    unsetenv(variable);
  const World world = make_world();
  EXPECT_STREQ(world.comm->name(), "self");
  EXPECT_EQ(world.comm->size(), 1);
  EXPECT_EQ(world.local_size, 1);
}

}  // namespace
}  // namespace sluice::test
