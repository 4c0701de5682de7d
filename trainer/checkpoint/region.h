// Which elements of a tensor a piece holds: a range of a box's row-major order.
//
// Cuts by the optimizer's shards are flat ranges of the whole tensor (the box is all of it); cuts
// along dims are whole boxes. Either way the elements form a few contiguous runs of the tensor, and
// everything that loads or checks pieces works on runs.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/tensor.h"

namespace sluice {

struct Region {
  Dims start;         // the box: first index of every dim
  Dims size;          // and how many of them
  int64_t begin = 0;  // [begin, end) of the box's elements in row-major order
  int64_t end = 0;

  int64_t count() const { return end - begin; }
};

// [begin, end) of the tensor's own row-major order.
Region flat_region(const Dims& dims, int64_t begin, int64_t end);
Region whole_region(const Dims& dims);

// The box lies in the tensor and the range in the box.
bool fits(const Dims& dims, const Region& region);

// Elements that are contiguous in the tensor and in the region.
struct Run {
  int64_t tensor = 0;  // first element, in the tensor's row-major order
  int64_t local = 0;   // the same, counted from the region's begin
  int64_t count = 0;
};

// In ascending order, of both orders. The region must fit.
std::vector<Run> runs_of(const Dims& dims, const Region& region);
// How many they are, without making them.
int64_t num_runs(const Dims& dims, const Region& region);

}  // namespace sluice
