// Bytes moved and little else: a warp a place, 16 bytes a lane where rows allow it. Floor: each row
// read and written once.
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/token_slots/token_slots_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kWarps = 8, kPlacesThreads = 256;

template <class T>
struct Matrix {
  T* data;
  int64_t stride;
  __device__ T* operator[](int64_t row) const { return data + row * stride; }
};

// One block: experts share its threads, and the sum over experts is one thread's.
__global__ void __launch_bounds__(kPlacesThreads)
    slot_places_kernel(Matrix<const int32_t> counts, int n, int X, Matrix<int64_t> begin,
                       int64_t* offsets) {
  for (int e = int(threadIdx.x); e < X; e += kPlacesThreads) {
    int64_t total = 0;
    for (int source = 0; source < n; ++source) total += counts[source][e];
    offsets[e + 1] = total;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    offsets[0] = 0;
    for (int e = 0; e < X; ++e) offsets[e + 1] += offsets[e];
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < X; e += kPlacesThreads) {
    int64_t next = offsets[e];
    for (int source = 0; source < n; ++source) {
      begin[source][e] = next;
      next += counts[source][e];
    }
  }
}

// A row is `units` of a type that alignment allows.
template <class Unit, bool kToSlots>
__global__ void __launch_bounds__(kWarps* kWarp)
    move_rows_kernel(Matrix<Unit> rows, Matrix<Unit> slots, int64_t places, int64_t size,
                     Matrix<const int64_t> begin, Matrix<const int32_t> counts, int X,
                     int64_t units) {
  const int64_t place = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (place >= places) return;
  const int64_t block = place / size, i = place % size;
  if (i >= counts[block / X][block % X]) return;
  Unit* const row = rows[begin[block / X][block % X] + i];
  Unit* const slot = slots[place];
  const Unit* const from = kToSlots ? row : slot;
  Unit* const to = kToSlots ? slot : row;
#pragma unroll 4
  for (int64_t unit = threadIdx.x % kWarp; unit < units; unit += kWarp) to[unit] = from[unit];
}

struct Move {
  const void* rows;
  int64_t rows_stride;  // bytes, as the next two
  const void* slots;
  int64_t slots_stride, bytes;
  int64_t places;
  ConstTensorView begin, counts;

  template <class Unit>
  bool made_of() const {
    const uintptr_t all = reinterpret_cast<uintptr_t>(rows) | reinterpret_cast<uintptr_t>(slots) |
                          uintptr_t(rows_stride | slots_stride | bytes);
    return all % sizeof(Unit) == 0;
  }
};

Move move_of(const ConstTensorView& rows, const ConstTensorView& slots,
             const ConstTensorView& begin, const ConstTensorView& counts) {
  const int64_t width = int64_t(size_of(rows.dtype));
  return {.rows = rows.data,
          .rows_stride = rows.row_stride * width,
          .slots = slots.data,
          .slots_stride = slots.row_stride * width,
          .bytes = rows.row_size() * width,
          .places = slots.dim(0),
          .begin = begin,
          .counts = counts};
}

template <class Unit, bool kToSlots>
void move_units(const Context& ctx, const char* name, const Move& move) {
  constexpr int64_t kBytes = sizeof(Unit);
  // Which of the two is written is the kernel's to know.
  const auto matrix = [](const void* data, int64_t stride) {
    return Matrix<Unit>{static_cast<Unit*>(const_cast<void*>(data)), stride / kBytes};
  };
  launch(ctx, name, {.blocks = unsigned(ceil_div(move.places, kWarps)), .threads = kWarps * kWarp},
         move_rows_kernel<Unit, kToSlots>, matrix(move.rows, move.rows_stride),
         matrix(move.slots, move.slots_stride), move.places, move.places / move.begin.numel(),
         Matrix<const int64_t>{move.begin.as<int64_t>(), move.begin.row_stride},
         Matrix<const int32_t>{move.counts.as<int32_t>(), move.counts.row_stride},
         int(move.begin.dim(1)), move.bytes / kBytes);
}

template <bool kToSlots>
void move_rows(const Context& ctx, const char* name, const Move& move) {
  if (move.places == 0) return;
  if (move.made_of<uint4>()) return move_units<uint4, kToSlots>(ctx, name, move);
  move_units<uint16_t, kToSlots>(ctx, name, move);
}

}  // namespace

void slot_places(const Context& ctx, const SlotPlaces& args) {
  launch(ctx, "slot_places", {.blocks = 1, .threads = kPlacesThreads}, slot_places_kernel,
         Matrix<const int32_t>{args.counts.as<int32_t>(), args.counts.row_stride},
         int(args.counts.dim(0)), int(args.counts.dim(1)),
         Matrix<int64_t>{args.begin.as<int64_t>(), args.begin.row_stride},
         args.offsets.as<int64_t>());
}

void rows_to_slots(const Context& ctx, const RowsToSlots& args) {
  move_rows<true>(ctx, "rows_to_slots", move_of(args.rows, args.slots, args.begin, args.counts));
}

void slots_to_rows(const Context& ctx, const SlotsToRows& args) {
  move_rows<false>(ctx, "slots_to_rows", move_of(args.rows, args.slots, args.begin, args.counts));
}

}  // namespace sluice::cuda
