// One OpenMP pool per rank. Results never depend on its size.
#pragma once

#include <string>

namespace sluice {

// Sets the pool's size for the calling thread and pins OpenBLAS to one thread per call, since
// sluice tiles GEMMs itself. Call once at start, with cores / ranks on this host.
void set_num_threads(int num_threads);
int num_threads();

// min(cores of this process's affinity mask, cores / local_ranks), at least 1.
int default_num_threads(int local_ranks);

// "OpenBLAS 0.3.21 DYNAMIC_ARCH ... SkylakeX": the library and the kernels it has chosen here.
std::string blas_version();

}  // namespace sluice
