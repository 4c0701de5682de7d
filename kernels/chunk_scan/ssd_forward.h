// The forward of Mamba-2's SSD: entering_states and chunk_scan_forward, in one walk with the state
// in registers where the device gains by it.
#pragma once

#include <string>

#include "kernels/chunk_state/entering_states.h"

namespace sluice {

struct SsdForward {
  ConstTensorView x = {};          // (B, T, H, P), a slice
  ConstTensorView B = {};          // (B, T, G, N), a slice
  ConstTensorView C = {};          // (B, T, G, N), a slice
  ConstTensorView dt = {};         // (B, T, H)
  ConstTensorView cum = {};        // (B, T, H)
  ConstTensorView D = {};          // (H)
  ConstTensorView doc_begin = {};  // (B, T) i32, local
  ConstTensorView initial = {};    // (B, H, P, N) statistics, optional; absent: 0
  FindState find_initial = {};     // or what finds it
  TensorView y = {};               // (B, T, H, P)
  TensorView final_state = {};     // (B, H, P, N) statistics, optional
  int64_t chunk = 0;               // Q, of cum
};
void ssd_forward(const Context& ctx, const SsdForward& args);

// What keeps an SSD from a device's fast kernels, for a log. Empty: nothing.
struct SsdSizes {
  int64_t P = 0, N = 0;
  int64_t chunk = 0;
  int64_t T = 0;
};
std::string describe_ssd(Device device, DType dtype, const SsdSizes& sizes);

}  // namespace sluice
