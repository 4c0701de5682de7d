// What ssd_backward's kernel through the states is given.
#pragma once

#include "kernels/chunk_scan/chunk_scan_tensor.cuh"
#include "kernels/chunk_scan/ssd_backward_cuda.h"

namespace sluice::cuda {

struct StatesBackward {
  ScanInputs<Bf16> in;
  RowsOf<const Bf16> dy, doutgoing;
  const float *leaving, *entering;  // (B * M, H * padded)
  int64_t padded;
  RowsOf<Bf16> dx, dB, dC;              // added to; dB and dC only if there are no parts
  float *leaving_dots, *entering_dots;  // as the weights
  float* state_dots;                    // (B * M, H)
  RowsOf<float> part_dB, part_dC;       // this kernel's, or null: (splits * B * T, G * N)
  int64_t all_tokens;                   // B * T
  int splits, tiles;
};
void states_backward(const Context& ctx, const StatesBackward& args);

}  // namespace sluice::cuda
