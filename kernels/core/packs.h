// Rows that GPUs move 16 bytes at a time.
#pragma once

#include <initializer_list>

#include "kernels/core/tensor.h"

namespace sluice {

inline constexpr int64_t kPackBytes = 16;

// Of a row's elements, or of those from one row to the next, or before a slice of a row.
constexpr bool whole_packs(int64_t elements, DType dtype) {
  return elements * int64_t(size_of(dtype)) % kPackBytes == 0;
}
inline bool whole_packs(std::initializer_list<int64_t> widths, DType dtype) {
  for (const int64_t width : widths) {
    if (!whole_packs(width, dtype)) return false;
  }
  return true;
}

inline bool at_pack(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kPackBytes == 0;
}
// Rows that begin at packs.
inline bool aligned_rows(const ConstTensorView& view) {
  return at_pack(view.data) && whole_packs(view.row_stride, view.dtype);
}
// Aligned rows of whole packs.
inline bool in_packs(const ConstTensorView& view) {
  return aligned_rows(view) && whole_packs(view.row_size(), view.dtype);
}

}  // namespace sluice
