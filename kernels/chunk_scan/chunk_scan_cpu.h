// The CPU side of chunk_scan, as its dispatcher sees it.
#pragma once

#include "kernels/chunk_scan/chunk_scan.h"

namespace sluice::cpu {

// partial_dD: (B * M, H) scratch.

// The reference.
template <class T>
void chunk_scan_forward(const ChunkScanForward& args);
template <class T>
void chunk_scan_backward(const ChunkScanBackward& args, TensorView partial_dD);

// The same through matrix products, for float. In double it is there to be tested.
template <class T>
void chunk_scan_tiles_forward(const ChunkScanForward& args);
template <class T>
void chunk_scan_tiles_backward(const ChunkScanBackward& args, TensorView partial_dD);

}  // namespace sluice::cpu
