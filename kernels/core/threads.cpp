#include "kernels/core/threads.h"

#include <cblas.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <thread>

#include "kernels/core/error.h"

namespace sluice {

void set_num_threads(int num_threads) {
  SLUICE_CHECK(num_threads >= 1, "a pool has at least one thread, got ", num_threads);
  omp_set_num_threads(num_threads);
}

int num_threads() { return omp_get_max_threads(); }

std::string blas_version() {
  return std::string(openblas_get_config()) + " on " + openblas_get_corename();
}

int default_num_threads(int local_ranks) {
  const int cores = std::max(1, int(std::thread::hardware_concurrency()));
  cpu_set_t mask;
  CPU_ZERO(&mask);
  const int allowed = sched_getaffinity(0, sizeof mask, &mask) == 0 ? CPU_COUNT(&mask) : cores;
  return std::max(1, std::min(allowed, cores / std::max(1, local_ranks)));
}

}  // namespace sluice
