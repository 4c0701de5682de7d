#include "trainer/checkpoint/region.h"

#include <algorithm>

namespace sluice {

namespace {

// The innermost dim of which the box is only a part; everything inside it is contiguous. 0 if the
// box is the whole tensor.
int cut_dim(const Dims& dims, const Region& region) {
  int dim = std::max(dims.rank - 1, 0);
  while (dim > 0 && region.size[dim] == dims[dim]) dim -= 1;
  return dim;
}

// Elements of the box that are contiguous in the tensor.
int64_t run_length(const Dims& dims, const Region& region) {
  int64_t length = 1;
  for (int dim = cut_dim(dims, region); dim < dims.rank; ++dim) length *= region.size[dim];
  return length;
}

// Where row `row` of the box's outer dims begins in the tensor.
int64_t row_start(const Dims& dims, const Region& region, int64_t row) {
  const int cut = cut_dim(dims, region);
  int64_t stride = 1;
  for (int dim = dims.rank - 1; dim > cut; --dim) stride *= dims[dim];
  int64_t offset = dims.rank == 0 ? 0 : region.start[cut] * stride;
  for (int dim = cut - 1; dim >= 0; --dim) {
    stride *= dims[dim + 1];
    offset += (region.start[dim] + row % region.size[dim]) * stride;
    row /= region.size[dim];
  }
  return offset;
}

}  // namespace

Region flat_region(const Dims& dims, int64_t begin, int64_t end) {
  Region region{.start = dims, .size = dims, .begin = begin, .end = end};
  region.start.size.fill(0);
  return region;
}

Region whole_region(const Dims& dims) { return flat_region(dims, 0, dims.numel()); }

bool fits(const Dims& dims, const Region& region) {
  if (region.start.rank != dims.rank || region.size.rank != dims.rank) return false;
  for (int dim = 0; dim < dims.rank; ++dim) {
    if (region.start[dim] < 0 || region.size[dim] < 0 || region.start[dim] > dims[dim])
      return false;
    if (region.size[dim] > dims[dim] - region.start[dim]) return false;
  }
  return 0 <= region.begin && region.begin <= region.end && region.end <= region.size.numel();
}

int64_t num_runs(const Dims& dims, const Region& region) {
  if (region.count() == 0) return 0;
  const int64_t length = run_length(dims, region);
  return (region.end - 1) / length - region.begin / length + 1;
}

std::vector<Run> runs_of(const Dims& dims, const Region& region) {
  SLUICE_CHECK(fits(dims, region), "region of a tensor ", to_string(dims));
  std::vector<Run> runs;
  if (region.count() == 0) return runs;
  runs.reserve(num_runs(dims, region));
  const int64_t length = run_length(dims, region);
  for (int64_t at = region.begin; at < region.end;) {
    const int64_t row = at / length;
    const int64_t stop = std::min(region.end, (row + 1) * length);
    runs.push_back({.tensor = row_start(dims, region, row) + at % length,
                    .local = at - region.begin,
                    .count = stop - at});
    at = stop;
  }
  return runs;
}

}  // namespace sluice
