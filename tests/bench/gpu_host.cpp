#include "kernels/core/dispatch.h"
#include "tests/bench/gpu.h"

namespace sluice::bench {

Marks::Marks(int64_t) { fail_no_cuda("sluice-bench"); }
Marks::~Marks() = default;
void Marks::record(int64_t, Stream) {}
double Marks::ms_after(int64_t) const { return 0; }

size_t gpu_cache_bytes(Device) { fail_no_cuda("sluice-bench"); }

}  // namespace sluice::bench
