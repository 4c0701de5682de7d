// The CPU side of chunk_scan, as its dispatcher sees it.
#pragma once

#include "kernels/chunk_scan/chunk_scan.h"

namespace sluice::cpu {

template <class T>
void chunk_scan_forward(const ChunkScanForward& args);

// partial_dD: (B * M, H) scratch.
template <class T>
void chunk_scan_backward(const ChunkScanBackward& args, TensorView partial_dD);

}  // namespace sluice::cpu
