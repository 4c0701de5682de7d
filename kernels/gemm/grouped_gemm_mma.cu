// Floor: FLOPs over the rate of mma.sync, some 60% of the chip's. A block of four warps makes a
// tile of 128 x 128 from slices of 64 of the inner dimension; three slices are on their way in
// shared memory (96 KB, so two blocks share an SM and one computes while the other begins or ends).
// A warp has 64 x 64 of the tile: 16 KB of shared memory are read for 32 products, half of what 64
// x 32 would take a product, and the shared memory keeps up with the tensor cores.
#include "kernels/gemm/grouped_gemm_mma.h"

#include "kernels/device/launch.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/gemm/grouped_product.cuh"

namespace sluice::cuda {

namespace {

constexpr int kSize = 128, kDepth = 64, kStages = 3;
constexpr int kThreads = 128;
constexpr int kWarpSize = 64;  // of a warp's tile, both ways
constexpr int kTileElements = kSize * kDepth;
constexpr size_t kSharedBytes = size_t(kStages) * 2 * kTileElements * sizeof(Bf16);

// Slices of one operand, of which this thread copies eight pieces of 16 bytes each. Zeros beyond
// the operand's ends: what lies there is another group's, or nobody's.
template <bool kRowsAreK>
class Operand {
 public:
  static constexpr int kColumns = kRowsAreK ? kSize : kDepth;
  using Tile = SharedTile<kColumns>;

  // `first` of `end` along M or N, `k` of `k_end` along K.
  __device__ Operand(const Bf16* matrix, int64_t stride, int64_t first, int64_t end, int64_t k,
                     int64_t k_end)
      : row_(int(threadIdx.x) / Tile::kPieces),
        column_(int(threadIdx.x) % Tile::kPieces * 8),
        stride_(stride),
        size_(end - first),
        depth_(k_end - k) {
    const int64_t row = (kRowsAreK ? k : first) + row_, column = (kRowsAreK ? first : k) + column_;
    from_ = matrix + row * stride + column;
  }

  // The next slice.
  __device__ void copy(Bf16* to) {
    const Tile tile{to};
    const int64_t rows = kRowsAreK ? depth_ : size_, columns = kRowsAreK ? size_ : depth_;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = row_ + pass * kPassRows;
      const bool valid = row < rows && column_ < columns;
      copy_async_16(tile.piece(row, column_), from_ + pass * kPassRows * stride_, valid);
    }
    from_ += kRowsAreK ? kDepth * stride_ : kDepth;
    depth_ -= kDepth;
  }

 private:
  static constexpr int kPassRows = kThreads / Tile::kPieces;
  static constexpr int kPasses = kTileElements / kColumns / kPassRows;

  int row_, column_;
  const Bf16* from_;
  int64_t stride_, size_, depth_;
};

struct Sums {
  Accumulator tiles[kWarpSize / kMmaM][kWarpSize / kMmaN];
};

// One slice, for the warp whose tile begins at (m, n) of the block's.
template <GroupedForm kForm>
__device__ void multiply(const Bf16* a, const Bf16* b, int m, int n, Sums& sums) {
  constexpr bool kAByK = kForm == GroupedForm::inner, kBByK = kForm != GroupedForm::rows_nk;
  const typename Operand<kAByK>::Tile a_tile{const_cast<Bf16*>(a)};
  const typename Operand<kBByK>::Tile b_tile{const_cast<Bf16*>(b)};
#pragma unroll
  for (int k = 0; k < kDepth; k += kMmaK) {
    FragmentA rows[kWarpSize / kMmaM];
    FragmentPairB columns[kWarpSize / 16];
#pragma unroll
    for (int i = 0; i < kWarpSize / kMmaM; ++i) {
      rows[i] =
          kAByK ? load_a_transposed(a_tile, m + i * kMmaM, k) : load_a(a_tile, m + i * kMmaM, k);
    }
#pragma unroll
    for (int j = 0; j < kWarpSize / 16; ++j)
      columns[j] = kBByK ? load_b_transposed(b_tile, n + j * 16, k) : load_b(b_tile, n + j * 16, k);
#pragma unroll
    for (int i = 0; i < kWarpSize / kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < kWarpSize / kMmaN; ++j)
        mma(sums.tiles[i][j], rows[i], columns[j / 2].halves[j % 2]);
    }
  }
}

// Through shared memory, so that a row is written 16 bytes at a time. beta C is added in f32 to the
// sum already rounded to bf16: as if the product had been stored and added.
__device__ void store_bf16(const Sums& sums, int warp_m, int warp_n, Bf16* shared,
                           const GroupedProduct& p, const GroupedTile& tile) {
  const SharedTile<kSize> rounded{shared};
#pragma unroll
  for (int i = 0; i < kWarpSize / kMmaM; ++i) {
#pragma unroll
    for (int j = 0; j < kWarpSize / kMmaN; ++j) {
      const Accumulator& sum = sums.tiles[i][j];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Bf16* const to = rounded.element(warp_m + i * kMmaM + Accumulator::row(2 * half),
                                         warp_n + j * kMmaN + Accumulator::column(0));
        *reinterpret_cast<uint32_t*>(to) =
            pack_bf16(sum.values[2 * half], sum.values[2 * half + 1]);
      }
    }
  }
  __syncthreads();
  Bf16* const c = static_cast<Bf16*>(p.c) + tile.m * p.c_stride + tile.n;
  for (int i = int(threadIdx.x); i < kSize * kSize / 8; i += kThreads) {
    const int row = i / (kSize / 8), column = i % (kSize / 8) * 8;
    if (tile.m + row >= tile.m_end || tile.n + column >= p.N) continue;
    Pack<Bf16> result = Pack<Bf16>::load(rounded.piece(row, column));
    Bf16* const to = c + row * p.c_stride + column;
    if (p.beta != 0) {
      const Pack<Bf16> old = Pack<Bf16>::load(to);
#pragma unroll
      for (int e = 0; e < Pack<Bf16>::kWidth; ++e) {
        result.values[e] =
            from_float<Bf16>(to_float(result.values[e]) + p.beta * to_float(old.values[e]));
      }
    }
    result.store(to);
  }
}

// C = sums + beta C, beta 0 or 1. A quad of lanes has 32 bytes of a row.
__device__ void store_f32(const Sums& sums, int warp_m, int warp_n, const GroupedProduct& p,
                          const GroupedTile& tile) {
  float* const c = static_cast<float*>(p.c) + tile.group * p.c_group;
#pragma unroll
  for (int i = 0; i < kWarpSize / kMmaM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t m = tile.m + warp_m + i * kMmaM + Accumulator::row(2 * half);
      if (m >= tile.m_end) continue;
      float2* const row = reinterpret_cast<float2*>(c + m * p.c_stride);
#pragma unroll
      for (int j = 0; j < kWarpSize / kMmaN; ++j) {
        const int64_t n = tile.n + warp_n + j * kMmaN + Accumulator::column(0);
        if (n >= p.N) continue;
        const Accumulator& sum = sums.tiles[i][j];
        const float2 old = p.beta == 0 ? float2{0, 0} : row[n / 2];
        row[n / 2] = {old.x + sum.values[2 * half], old.y + sum.values[2 * half + 1]};
      }
    }
  }
}

template <GroupedForm kForm>
__global__ void __launch_bounds__(kThreads, 2) grouped_mma_kernel(GroupedProduct p) {
  extern __shared__ __align__(128) Bf16 shared[];
  const GroupedTile tile = GroupedTiles<kForm, kSize, kSize>(p)[blockIdx.x];
  if (tile.group < 0) return;
  Operand<kForm == GroupedForm::inner> a(p.a, p.a_stride, tile.m, tile.m_end, tile.k, tile.k_end);
  Operand<kForm != GroupedForm::rows_nk> b(p.b + tile.group * p.b_group, p.b_stride, tile.n, p.N,
                                           tile.k, tile.k_end);
  const int slices = int((tile.k_end - tile.k + kDepth - 1) / kDepth);
  const auto begin_copy = [&](int slice) {
    Bf16* const to = shared + slice % kStages * 2 * kTileElements;
    if (slice < slices) {
      a.copy(to);
      b.copy(to + kTileElements);
    }
    commit_copies();
  };
#pragma unroll
  for (int slice = 0; slice < kStages - 1; ++slice) begin_copy(slice);

  const int warp = int(threadIdx.x) / kWarp;
  const int warp_m = warp / 2 * kWarpSize, warp_n = warp % 2 * kWarpSize;
  Sums sums;
  for (int slice = 0; slice < slices; ++slice) {
    wait_copies<kStages - 2>();
    __syncthreads();  // the slice has arrived, and the one before it is no longer read
    begin_copy(slice + kStages - 1);
    const Bf16* const at = shared + slice % kStages * 2 * kTileElements;
    multiply<kForm>(at, at + kTileElements, warp_m, warp_n, sums);
  }
  if constexpr (kForm == GroupedForm::inner) {
    store_f32(sums, warp_m, warp_n, p, tile);
  } else {
    __syncthreads();
    store_bf16(sums, warp_m, warp_n, shared, p, tile);
  }
}

template <GroupedForm kForm>
void launch_mma(const Context& ctx, const char* name, const GroupedProduct& product) {
  launch(ctx, name,
         {.blocks = unsigned(GroupedTiles<kForm, kSize, kSize>::bound(product)),
          .threads = kThreads,
          .shared_bytes = kSharedBytes},
         grouped_mma_kernel<kForm>, product);
}

}  // namespace

bool fits_grouped_mma(const GroupedGemm& args) {
  return args.a.dtype == DType::bf16 && in_packs(args.a) && in_packs(args.weights) &&
         in_packs(args.c);
}
bool fits_grouped_mma(const GroupedGemmWeight& args) {
  return args.a.dtype == DType::bf16 && in_packs(args.a) && in_packs(args.b) &&
         in_packs(args.weights);
}

void grouped_gemm_mma(const Context& ctx, const GroupedGemm& args) {
  const GroupedProduct product(args);
  if (args.transpose_weights) {
    launch_mma<GroupedForm::rows_nk>(ctx, "grouped_gemm", product);
  } else {
    launch_mma<GroupedForm::rows_kn>(ctx, "grouped_gemm", product);
  }
}

void grouped_gemm_weight_mma(const Context& ctx, const GroupedGemmWeight& args) {
  launch_mma<GroupedForm::inner>(ctx, "grouped_gemm_weight", GroupedProduct(args));
}

}  // namespace sluice::cuda
