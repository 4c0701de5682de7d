// What the tensor-core kernels of chunk_scan share. They take bf16, P = 64, N = 64 or 128 and
// chunks up to 256 tokens; a block has one chunk, keeps its Q x Q scores in shared memory, and
// walks over heads of one group.
//
// A chunk is cut into strips of 16 tokens. Only 16 x 16 squares on and below the diagonal exist;
// they lie one after the other as fragments of A, 512 bytes each.
#pragma once

#include "kernels/chunk_scan/chunk_scan_device.cuh"
#include "kernels/core/packs.h"
#include "kernels/device/mma.cuh"

namespace sluice::cuda {

constexpr int kStrip = 16;
constexpr int kHeadDim = 64;  // P
constexpr int kHeadTiles = kHeadDim / kMmaN;
constexpr int kHeadSteps = kHeadDim / kMmaK;
constexpr float kLog2e = 1.4426950408889634f;

// 0, for all that the compiler knows. Added to a tile's address inside the loop over heads, it
// keeps the compiler from working out all addresses before the loop and holding them in registers,
// of which there are none to spare.
__device__ inline int opaque_zero() {
  int zero;
  asm volatile("mov.u32 %0, 0;" : "=r"(zero));
  return zero;
}

// The place of square (i, j), j <= i, among all of a chunk's.
__host__ __device__ constexpr int square_of(int i, int j) { return i * (i + 1) / 2 + j; }

// A square of bf16, lane by lane.
__device__ inline FragmentA load_square(const uint4* squares, int square) {
  const uint4 words = squares[square * 32 + threadIdx.x % 32];
  return {{words.x, words.y, words.z, words.w}};
}
__device__ inline void store_square(uint4* squares, int square, const FragmentA& a) {
  squares[square * 32 + threadIdx.x % 32] =
      make_uint4(a.words[0], a.words[1], a.words[2], a.words[3]);
}

// The heads [begin, end) of one block.
struct HeadRange {
  int group, begin, end;
  template <class T>
  __device__ HeadRange(const ScanInputs<T>& in, int group, int split, int splits)
      : group(group),
        begin(group * in.group_heads() + split * in.group_heads() / splits),
        end(group * in.group_heads() + (split + 1) * in.group_heads() / splits) {}
};

// Whether forward or backward may be left to tensor cores, as far as the inputs go.
template <class Args>
bool tensor_cores_take(const Args& args) {
  return tensor_cores_take(args.x, args.B, args.chunk) && aligned_rows(args.x) &&
         aligned_rows(args.B) && aligned_rows(args.C) && aligned_rows(args.incoming);
}

// A head's state, (P, N), on its way to a tile.
template <int kState, int kThreads>
__device__ void copy_state_async(Bf16* tile, const Bf16* state) {
  copy_tile_async<kHeadDim, kState, kThreads>(SharedTile<kState>{tile}, state, kState, 0, kHeadDim);
}

// Rows of 64 bf16 that a warp has in a shared tile of 16 rows, to device memory.
__device__ inline void write_strip(const SharedTile<kHeadDim>& staged, int first_row, Bf16* to,
                                   int64_t stride, int first_token, int size) {
#pragma unroll
  for (int i = threadIdx.x % 32; i < kStrip * kHeadTiles; i += 32) {
    const int row = i / kHeadTiles, column = i % kHeadTiles * 8, t = first_token + row;
    if (t >= size) continue;
    *reinterpret_cast<uint4*>(to + t * stride + column) =
        *reinterpret_cast<const uint4*>(staged.piece(first_row + row, column));
  }
}

// body.operator()<Q, N>() with the least chunk length that has a kernel.
template <class Body>
auto dispatch_scan_shape(int64_t chunk, int64_t state_dim, Body&& body) {
  if (state_dim == 64) {
    return chunk <= 128 ? body.template operator()<128, 64>() : body.template operator()<256, 64>();
  }
  return chunk <= 128 ? body.template operator()<128, 128>() : body.template operator()<256, 128>();
}

// Whether a block may have this much shared memory on the device at hand.
inline bool has_shared_bytes(size_t bytes) {
  int device = 0, most = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes <= size_t(most);
}

// These do nothing and return false if shape, strides or device are not for tensor cores.
bool tensor_scan_forward(const Context& ctx, const ChunkScanForward& args);
bool tensor_scan_backward(const Context& ctx, const ChunkScanBackward& args,
                          const ChunkScanPartials& partials);
// The former by warpgroups, and whether shape and device are for that.
bool scan_by_groups(const ScanInputs<Bf16>& in);
void scan_forward_by_groups(const Context& ctx, const ScanInputs<Bf16>& in, RowsOf<Bf16> y);

// The latter is in two parts: first the incoming states (dincoming, a share of dC, dcum), then the
// pairs of tokens (dx, ddt, dD, dB, a share of dC; adds to dcum).
struct ScanGradients {
  RowsOf<const Bf16> dy;
  RowsOf<Bf16> dx;
  RowsOf<float> ddt, dcum, dincoming, partial_dD, partial_dB, partial_dC;
  int64_t all_tokens;  // B * T: rows of one split's partial sums
  int splits;
  // For pairs: whether dcum has a share already, and what they write in place of partial sums.
  bool adds_dcum;
  RowsOf<Bf16> dB = {}, dC = {};
};
void incoming_backward(const Context& ctx, const ScanInputs<Bf16>& in, const ScanGradients& to);
void pairs_backward(const Context& ctx, const ScanInputs<Bf16>& in, const ScanGradients& to);
// The latter by warpgroups, and whether shape and device are for that.
bool pairs_by_groups(const ScanInputs<Bf16>& in);
void pairs_backward_by_groups(const Context& ctx, const ScanInputs<Bf16>& in,
                              const ScanGradients& to);
// out = the sum of the parts, in order.
void sum_parts(const Context& ctx, const ConstTensorView& parts, const TensorView& out);
// Bytes of shared memory that a block of theirs has.
size_t incoming_backward_shared(const ScanInputs<Bf16>& in);
size_t pairs_backward_shared(const ScanInputs<Bf16>& in);

}  // namespace sluice::cuda
