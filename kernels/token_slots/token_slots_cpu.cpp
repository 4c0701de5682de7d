#include "kernels/token_slots/token_slots_cpu.h"

#include <cstring>

namespace sluice::cpu {

namespace {

// copy(slot row, row) for every row of every block.
template <class Copy>
void for_each_row(const ConstTensorView& begin, const ConstTensorView& counts, int64_t slots,
                  const Copy& copy) {
  const int64_t blocks = begin.numel(), X = begin.dim(1);
  const int64_t size = blocks == 0 ? 0 : slots / blocks;
  for (int64_t block = 0; block < blocks; ++block) {
    const int32_t count = counts.row<int32_t>(block / X)[block % X];
    SLUICE_CHECK(count >= 0 && count <= size, "a block of ", count, " rows has ", size, " places");
  }
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = begin.row<int64_t>(block / X)[block % X];
    const int32_t count = counts.row<int32_t>(block / X)[block % X];
    for (int64_t i = 0; i < count; ++i) copy(block * size + i, first + i);
  }
}

template <class View>
auto* row_at(const View& view, int64_t row) {
  using Byte = std::conditional_t<std::is_same_v<View, TensorView>, char, const char>;
  return static_cast<Byte*>(view.data) + row * view.row_stride * int64_t(size_of(view.dtype));
}

}  // namespace

void slot_places(const SlotPlaces& args) {
  const int64_t n = args.counts.dim(0), X = args.counts.dim(1);
  int64_t* const offsets = args.offsets.as<int64_t>();
  int64_t next = 0;
  for (int64_t e = 0; e < X; ++e) {
    offsets[e] = next;
    for (int64_t source = 0; source < n; ++source) {
      args.begin.row<int64_t>(source)[e] = next;
      next += args.counts.row<int32_t>(source)[e];
    }
  }
  offsets[X] = next;
}

void rows_to_slots(const RowsToSlots& args) {
  const size_t bytes = args.rows.row_size() * size_of(args.rows.dtype);
  for_each_row(args.begin, args.counts, args.slots.dim(0), [&](int64_t slot, int64_t row) {
    std::memcpy(row_at(args.slots, slot), row_at(args.rows, row), bytes);
  });
}

void slots_to_rows(const SlotsToRows& args) {
  const size_t bytes = args.rows.row_size() * size_of(args.rows.dtype);
  for_each_row(args.begin, args.counts, args.slots.dim(0), [&](int64_t slot, int64_t row) {
    std::memcpy(row_at(args.rows, row), row_at(args.slots, slot), bytes);
  });
}

}  // namespace sluice::cpu
