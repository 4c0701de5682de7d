// What blocks need whose warps have different tasks: barriers in shared memory that count threads
// and bytes, a cursor for stages that are filled in a ring, and registers that pass from one
// warpgroup to the others.
#pragma once

#include <cstdint>

#include "kernels/device/mma.cuh"

namespace sluice::cuda {

// A barrier in shared memory, used over and over: its phases are odd and even by turns.
class SharedBarrier {
 public:
  uint64_t word;

  // By one thread, before a __syncthreads(), and before a fence_barriers() where the copy engine or
  // other blocks arrive.
  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&word)),
                 "r"(arrivals)
                 : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(&word))
                 : "memory");
  }
  // At the same barrier of another block of the cluster, by one lane of a warp at a time: two lanes
  // that arrive at two blocks in one instruction were seen to hang.
  __device__ void arrive_at(int rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
        "}\n" ::"r"(shared_address(&word)),
        "r"(rank)
        : "memory");
  }
  // Arrives, and lets the phase wait for `bytes` of copies too.
  __device__ void arrive_expecting(int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(&word)),
        "r"(bytes)
        : "memory");
  }
  // Until the phase of this parity is over. A fresh barrier counts as beyond an odd phase.
  __device__ void wait(uint32_t parity) {
    while (!over(parity)) {
    }
  }

 private:
  __device__ bool over(uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
#if __CUDA_ARCH__ >= 900
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
#else
        "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
#endif
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(done)
        : "r"(shared_address(&word)), "r"(parity)
        : "memory");
    return done != 0;
  }
};

// Which of kStages stages is next, and the parity of how often all of them have been passed: of the
// phase that one who reads waits for. One who fills waits for the other parity.
template <int kStages>
struct RingCursor {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

template <int kRegisters>
__device__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

}  // namespace sluice::cuda
