// The stable counting sort of entries by expert, in three launches: every piece of a row counts its
// entries of each expert; one block turns the counts into places; every piece gives its entries
// theirs, in order. Counts are integers: nothing depends on who comes first.
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/token_permute/token_permute_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kScanThreads = 1024;

struct Index {
  const int32_t* experts;
  int64_t experts_stride;
  int32_t* slot;
  int64_t slot_stride;
  int64_t* offsets;
  int32_t* kept;        // or null
  const float* before;  // or null
  int64_t before_stride;
  int64_t B, T;
  int X, k;
  int capacity;
  RowBlocks pieces;
  int32_t* starts;      // of a piece: counts, then entries of the row before it
  int32_t* row_starts;  // of a row: entries of earlier rows that are kept

  // Entries of an expert that row b keeps; `taken` by tokens on other ranks.
  __device__ int limit(int64_t b, int expert) const {
    if (capacity == 0) return INT_MAX;
    const float taken = before == nullptr ? 0 : before[b * before_stride + expert];
    return taken < float(capacity) ? capacity - int(taken) : 0;
  }
};

// place(entry, expert, rank): expert is -1 where it is none; rank counts the entry's predecessors
// of the same expert from `cursor` on, which is moved. A warp goes through 32 entries at a time.
template <class Place>
__device__ void for_each_entry(const Index& p, int64_t b, int64_t piece, int32_t* cursor,
                               const Place& place) {
  const int lane = int(threadIdx.x);
  const unsigned lower = (1u << lane) - 1;
  for (int64_t first = p.pieces.begin(piece); first < p.pieces.end(piece); first += kWarp) {
    const int64_t entry = first + lane;
    const bool mine = entry < p.pieces.end(piece);
    const int64_t t = b * p.T + entry / p.k;
    int expert = mine ? p.experts[t * p.experts_stride + entry % p.k] : -1;
    if (unsigned(expert) >= unsigned(p.X)) expert = -1;
    const unsigned same = __match_any_sync(kFullWarp, expert);
    const int rank = expert < 0 ? 0 : cursor[expert] + __popc(same & lower);
    __syncwarp();
    if (expert >= 0 && (same & lower) == 0) cursor[expert] += __popc(same);
    __syncwarp();
    if (mine) place(entry, expert, rank);
  }
}

// One warp a piece.
__global__ void __launch_bounds__(kWarp) count_entries_kernel(Index p) {
  extern __shared__ int32_t cursor[];
  for (int e = int(threadIdx.x); e < p.X; e += kWarp) cursor[e] = 0;
  __syncwarp();
  for_each_entry(p, blockIdx.x / p.pieces.count, blockIdx.x % p.pieces.count, cursor,
                 [](int64_t, int, int) {});
  for (int e = int(threadIdx.x); e < p.X; e += kWarp)
    p.starts[int64_t(blockIdx.x) * p.X + e] = cursor[e];
}

// Of this lane and those before it.
template <class T>
__device__ T sum_of_lanes_up_to(T value) {
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const T other = __shfl_up_sync(kFullWarp, value, offset);
    if (int(threadIdx.x) % kWarp >= offset) value += other;
  }
  return value;
}

// One block. A warp an expert, a lane a piece; then one warp adds up the experts.
__global__ void __launch_bounds__(kScanThreads) scan_entries_kernel(Index p) {
  constexpr int kAhead = 8;  // counts of so many pieces a lane are on their way together
  const int lane = int(threadIdx.x) % kWarp, count = int(p.pieces.count);
  const int per_row = (count + kWarp - 1) / kWarp, rounds = int(p.B) * per_row;
  for (int e = int(threadIdx.x) / kWarp; e < p.X; e += kScanThreads / kWarp) {
    int32_t total = 0, row = 0;  // entries of earlier rows that are kept, and of this row
    for (int first = 0; first < rounds; first += kAhead) {
      int32_t counts[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int b = (first + i) / per_row, piece = (first + i) % per_row * kWarp + lane;
        const bool mine = first + i < rounds && piece < count;
        counts[i] = mine ? p.starts[(int64_t(b) * count + piece) * p.X + e] : 0;
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= rounds) break;
        const int b = (first + i) / per_row, piece = (first + i) % per_row * kWarp + lane;
        const int32_t up_to = sum_of_lanes_up_to(counts[i]);
        if (piece < count)
          p.starts[(int64_t(b) * count + piece) * p.X + e] = row + up_to - counts[i];
        row += __shfl_sync(kFullWarp, up_to, kWarp - 1);
        if ((first + i + 1) % per_row != 0) continue;
        if (lane == 0) p.row_starts[int64_t(b) * p.X + e] = total;
        total += min(row, p.limit(b, e));
        row = 0;
      }
    }
    if (lane != 0) continue;
    if (p.kept != nullptr) p.kept[e] = total;
    p.offsets[e + 1] = total;
  }
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  if (lane == 0) p.offsets[0] = 0;
  int64_t before = 0;
  for (int first = 0; first < p.X; first += kWarp) {
    const int e = first + lane;
    const int64_t sum = sum_of_lanes_up_to(e < p.X ? p.offsets[e + 1] : 0);
    if (e < p.X) p.offsets[e + 1] = before + sum;
    before += __shfl_sync(kFullWarp, sum, kWarp - 1);
  }
}

// One warp a piece.
__global__ void __launch_bounds__(kWarp) place_entries_kernel(Index p) {
  extern __shared__ int32_t cursor[];
  for (int e = int(threadIdx.x); e < p.X; e += kWarp)
    cursor[e] = p.starts[int64_t(blockIdx.x) * p.X + e];
  __syncwarp();
  const int64_t b = blockIdx.x / p.pieces.count;
  for_each_entry(p, b, blockIdx.x % p.pieces.count, cursor,
                 [&](int64_t entry, int expert, int rank) {
                   const int64_t t = b * p.T + entry / p.k;
                   int32_t& slot = p.slot[t * p.slot_stride + entry % p.k];
                   if (expert < 0 || rank >= p.limit(b, expert)) {
                     slot = -1;
                     return;
                   }
                   slot = int32_t(p.offsets[expert]) + p.row_starts[b * p.X + expert] + rank;
                 });
}

}  // namespace

void token_index(const Context& ctx, const TokenIndex& args, const TensorView& starts,
                 const TensorView& row_starts) {
  const int64_t B = args.experts.dim(0), T = args.experts.dim(1), k = args.experts.dim(2);
  const int64_t X = args.offsets.numel() - 1;
  const Index index{.experts = args.experts.as<int32_t>(),
                    .experts_stride = args.experts.row_stride,
                    .slot = args.slot.as<int32_t>(),
                    .slot_stride = args.slot.row_stride,
                    .offsets = args.offsets.as<int64_t>(),
                    .kept = args.kept ? args.kept.as<int32_t>() : nullptr,
                    .before = args.before ? args.before.as<float>() : nullptr,
                    .before_stride = args.before.row_stride,
                    .B = B,
                    .T = T,
                    .X = int(X),
                    .k = int(k),
                    .capacity = int(std::min<int64_t>(args.capacity, INT_MAX)),
                    .pieces = index_pieces(B, T * k),
                    .starts = starts.as<int32_t>(),
                    .row_starts = row_starts.as<int32_t>()};
  const Grid pieces{.blocks = unsigned(B * index.pieces.count),
                    .threads = kWarp,
                    .shared_bytes = size_t(X) * sizeof(int32_t)};
  launch(ctx, "token_index", pieces, count_entries_kernel, index);
  launch(ctx, "token_index", {.blocks = 1, .threads = kScanThreads}, scan_entries_kernel, index);
  launch(ctx, "token_index", pieces, place_entries_kernel, index);
}

}  // namespace sluice::cuda
