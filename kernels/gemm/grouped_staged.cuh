// What becomes of the sums of a grouped product by way of shared memory, while the next tile is
// multiplied.
//
// Sums that SwiGLU or its gradient is made of are left there in bf16, and three warps make of them
// what is asked for: a warp reads and writes 512 bytes of a row at a time. Sums in f32, 128 KB a
// tile, go through half the room in parts, from which the copy engine writes or adds them.
#pragma once

#include "kernels/device/hopper.cuh"
#include "kernels/device/swiglu.cuh"
#include "kernels/gemm/grouped_results.cuh"

namespace sluice::cuda {

// --- Rows of bf16

constexpr int kStagedTile = 128, kStagedColumns = 256;  // rows and columns
constexpr int kWriters = 3;                             // warps, which have rows by turns
using StagedSums = SharedTile<kStagedColumns>;

// A warpgroup's 64 rows.
template <int kSums>
__device__ void stage_sums(const float (&d)[kSums], const StagedSums& rows) {
  const int first = int(threadIdx.x) % 128 / kWarp * 16;
#pragma unroll
  for (int j = 0; j < kSums; j += 8) {
    store_a(rows, first, 2 * j,
            {{pack_bf16(d[j], d[j + 1]), pack_bf16(d[j + 2], d[j + 3]),
              pack_bf16(d[j + 4], d[j + 5]), pack_bf16(d[j + 6], d[j + 7])}});
  }
}

// A tile as one of the warps that write has it: rows [first, first + count) of the product, columns
// from `column` on. Where it has nothing to write it computes all the same, so that rows do not
// wait for each other.
struct StagedRows {
  StagedSums sums;
  int64_t first;
  int count;
  int64_t column;
  int writer;

  __device__ Eight load(int row, int column) const {
    return Eight::load(sums.piece(min(row, kStagedTile - 1), column));
  }
};

// Of a tile whose first half of columns are gates, the other what they gate. hidden is made of the
// rounded ones, which the backward reads. A warp has two rows at a time.
__device__ inline void write_swiglu(const StagedRows& rows, const GroupedProduct& p,
                                    const SwigluOperands& s) {
  constexpr int kHalf = kStagedColumns / 2, kLanes = kHalf / 8;  // of a row
  constexpr int kRows = kWarp / kLanes;                          // at a time
  const int lane = int(threadIdx.x) % kWarp, column = 8 * (lane % kLanes);
  const int64_t n = rows.column / 2 + column;
  Bf16* const c = static_cast<Bf16*>(p.c) + rows.first * p.c_stride + n;
  Bf16* const to_hidden = s.hidden + rows.first * s.hidden_stride + n;
#pragma unroll 4
  for (int begin = rows.writer * kRows; begin < rows.count; begin += kWriters * kRows) {
    const int row = begin + lane / kLanes;
    const Eight gate = rows.load(row, column), up = rows.load(row, kHalf + column);
    Eight hidden;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      hidden.words[i] =
          map_word([&](int j) { return swiglu(part(gate.words[i], j), part(up.words[i], j)); });
    }
    if (row >= rows.count || n >= s.F) continue;
    gate.store_once(c + row * p.c_stride);
    up.store_once(c + row * p.c_stride + s.F);
    hidden.store_once(to_hidden + row * s.hidden_stride);
  }
}

struct SwigluPieces {
  Eight dgate, dup, hidden;
};
__device__ inline SwigluPieces swiglu_pieces(const Eight& dhidden, const Eight& gate,
                                             const Eight& up) {
  SwigluPieces pieces;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    SwigluGradients of[2];
#pragma unroll
    for (int at = 0; at < 2; ++at) {
      of[at] = swiglu_gradients(part(dhidden.words[i], at), part(gate.words[i], at),
                                part(up.words[i], at));
    }
    pieces.dgate.words[i] = pack_bf16(of[0].gate, of[1].gate);
    pieces.dup.words[i] = pack_bf16(of[0].up, of[1].up);
    pieces.hidden.words[i] =
        map_word([&](int at) { return swiglu(part(gate.words[i], at), part(up.words[i], at)); });
  }
  return pieces;
}

// What the gradient of SwiGLU reads, of a few rows at a time: these are asked for while those
// before them are computed.
struct GatedRows {
  static constexpr int kCount = 4, kNext = kCount * kWriters;  // rows; and to the next ones
  Eight gates[kCount], ups[kCount];

  // Rows begin, begin + kWriters ... below `count`, from `gate` on in `up_stride` apart.
  __device__ void load(const Bf16* gate, const SwigluOperands& s, int begin, int count) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = begin + i * kWriters;
      if (row >= count) continue;
      gates[i] = Eight::load_once(gate + row * s.up_stride);
      ups[i] = Eight::load_once(gate + row * s.up_stride + s.F);
    }
  }
};

// `arrived` returns when the sums are in shared memory.
template <class Arrived>
__device__ void write_swiglu_gradient(const StagedRows& rows, const SwigluOperands& s,
                                      const Arrived& arrived) {
  const int column = 8 * (int(threadIdx.x) % kWarp);
  const int64_t n = rows.column + column;
  const int count = n < s.F ? rows.count : 0;  // of this lane
  const Bf16* const gate = s.up + rows.first * s.up_stride + n;
  Bf16* const dgate = s.dup + rows.first * s.dup_stride + n;
  Bf16* const to_hidden = s.hidden + rows.first * s.hidden_stride + n;
  const auto finish = [&](const GatedRows& of, int begin) {
#pragma unroll
    for (int i = 0; i < GatedRows::kCount; ++i) {
      const int row = begin + i * kWriters;
      const SwigluPieces pieces = swiglu_pieces(rows.load(row, column), of.gates[i], of.ups[i]);
      if (row >= count) continue;
      pieces.dgate.store_once(dgate + row * s.dup_stride);
      pieces.dup.store_once(dgate + row * s.dup_stride + s.F);
      pieces.hidden.store_once(to_hidden + row * s.hidden_stride);
    }
  };
  GatedRows even{}, odd{};
  even.load(gate, s, rows.writer, count);
  arrived();
#pragma unroll 1
  for (int begin = rows.writer; begin < rows.count; begin += 2 * GatedRows::kNext) {
    odd.load(gate, s, begin + GatedRows::kNext, count);
    finish(even, begin);
    even.load(gate, s, begin + 2 * GatedRows::kNext, count);
    finish(odd, begin + GatedRows::kNext);
  }
}

// --- Sums in f32

// A part of a warpgroup's sums: 64 rows of 64 columns, as boxes of 64 rows of 128 bytes, whose
// 16-byte pieces the copy engine expects permuted. There is room for two: one is written while the
// copy engine reads the other.
constexpr int kPartBoxes = 2, kPartBoxBytes = 64 * 128, kPartBytes = kPartBoxes * kPartBoxBytes;
constexpr int kPartColumns = kPartBoxes * 32, kParts = kStagedColumns / kPartColumns;
constexpr int kRoomBytes = 2 * kPartBytes;  // a warpgroup's

// Columns [kPartColumns part, kPartColumns (part + 1)) of a warpgroup's 256.
template <int kSums>
__device__ void stage_part(const float (&d)[kSums], int part, uint8_t* room) {
  const int quad = int(threadIdx.x) % 4;
  const bool odd = threadIdx.x % 2 != 0, odd_row = threadIdx.x / 4 % 2 != 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row_of(half);
#pragma unroll
    for (int box = 0; box < kPartBoxes; ++box) {
      // Two neighbouring lanes exchange halves, so that each has four neighbouring columns.
      float4 pairs[2];
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const float* const left = d + kSums / kParts * part + 16 * box + 8 * pair + 2 * half;
        const float* const right = left + 4;
        const float x = __shfl_xor_sync(kFullWarp, odd ? left[0] : right[0], 1);
        const float y = __shfl_xor_sync(kFullWarp, odd ? left[1] : right[1], 1);
        pairs[pair] = odd ? float4{x, y, right[0], right[1]} : float4{left[0], left[1], x, y};
      }
      // Neighbouring rows begin with different pairs, which lie in different banks.
#pragma unroll
      for (int turn = 0; turn < 2; ++turn) {
        const bool second = (turn != 0) != odd_row;
        const int piece = 4 * second + 2 * odd + quad / 2;
        *reinterpret_cast<float4*>(room + box * kPartBoxBytes + row * 128 +
                                   (piece ^ (row & 7)) * 16) = second ? pairs[1] : pairs[0];
      }
    }
  }
}

// C = sums + beta C, beta 0 or 1, of a warpgroup's 64 rows. Nobody else adds to these elements: the
// order is that of the launches. `barrier` is the warpgroup's own.
template <int kSums>
__device__ void store_sums_f32(const float (&d)[kSums], uint8_t* room, const CUtensorMap& c,
                               float beta, int64_t first, const GroupedTile& tile, int barrier) {
  const bool elected = threadIdx.x % 128 == 0;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    uint8_t* const boxes = room + part % 2 * kPartBytes;
    if (elected) wait_until_boxes_are_read<1>();
    named_barrier(barrier, 128);
    stage_part(d, part, boxes);
    fence_shared_writes();
    named_barrier(barrier, 128);
    if (!elected) continue;
    for (int box = 0; box < kPartBoxes; ++box) {
      const int n = int(tile.n) + kPartColumns * part + 32 * box;
      if (beta == 0) {
        store_box(c, boxes + box * kPartBoxBytes, n, int(first), tile.group);
      } else {
        add_box(c, boxes + box * kPartBoxBytes, n, int(first), tile.group);
      }
    }
    commit_boxes();
  }
}

}  // namespace sluice::cuda
