// The CPU side of gated_rms_norm, as its dispatcher sees it.
#pragma once

#include "kernels/gated_rms_norm/gated_rms_norm.h"

namespace sluice::cpu {

template <class T>
void gated_rms_norm_forward(const GatedRmsNormForward& args);

// partial_dweight: (RowBlocks(rows).count, E), scratch.
template <class T>
void gated_rms_norm_backward(const GatedRmsNormBackward& args, TensorView partial_dweight);

// One group of one row.
template <class T>
struct GatedNormForwardGroup {
  const T* x = nullptr;
  const T* z = nullptr;
  const T* weight = nullptr;
  T* y = nullptr;
  int64_t width = 0;
  GateOrder gate = GateOrder::before;
  double eps = 0;
};

template <class T>
struct GatedNormBackwardGroup {
  const T* dy = nullptr;
  const T* x = nullptr;
  const T* z = nullptr;
  const T* weight = nullptr;
  T* dx = nullptr;
  T* dz = nullptr;
  T* dweight = nullptr;  // accumulated
  int64_t width = 0;
  GateOrder gate = GateOrder::before;
  double eps = 0;
};

// In float, vectorised for the processor at hand.
void gated_norm_forward_simd(const GatedNormForwardGroup<float>& group);
void gated_norm_backward_simd(const GatedNormBackwardGroup<float>& group);

}  // namespace sluice::cpu
