#include "parallel/world.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "parallel/mpi_communicator.h"
#include "parallel/self_communicator.h"

namespace sluice {
namespace {

std::optional<int> number(const Environment& environment, const char* variable) {
  const char* text = environment(variable);
  if (text == nullptr) return std::nullopt;
  int value = 0;
  const char* end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, value);
  if (error != std::errc() || rest != end || value < 1) {
    throw UsageError(concat("the environment variable ", variable,
                            " must be a number of ranks, got '", text,
                            "': unset it, or start sluice with mpirun or srun"));
  }
  return value;
}

}  // namespace

Launcher find_launcher(const Environment& environment) {
  if (const auto size = number(environment, "OMPI_COMM_WORLD_SIZE"))
    return {.name = "mpirun (Open MPI)", .size = *size};
  if (const auto size = number(environment, "PMI_SIZE"))
    return {.name = "mpirun (MPICH, Intel MPI) or srun --mpi=pmi2", .size = *size};
  if (environment("PMIX_RANK") != nullptr || environment("PMIX_NAMESPACE") != nullptr) {
    const auto size = number(environment, "SLURM_STEP_NUM_TASKS");
    if (size) return {.name = "srun --mpi=pmix", .size = *size};
    return {.name = "a PMIx launcher", .size = 0};
  }
  // Of the job (SLURM_NTASKS) a batch script sees the number too, though it runs alone; of the step
  // it sees 1.
  const auto tasks = number(environment, "SLURM_STEP_NUM_TASKS");
  if (tasks && *tasks > 1) {
    throw UsageError(concat("srun started ", *tasks,
                            " tasks without MPI, which would train apart: use srun --mpi=pmix"));
  }
  return {};
}

World make_world(const WorldOptions& options) {
  const Launcher launcher =
      find_launcher([](const char* variable) -> const char* { return std::getenv(variable); });
  if (launcher.name.empty()) return {.comm = make_self_communicator()};
  return make_mpi_world(launcher, options);
}

}  // namespace sluice
