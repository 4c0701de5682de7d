// Floor: FLOPs over the rate of wgmma, that of a dense product. One block an SM walks the tiles of
// 128 x 256: a warp has the copy engine bring slices of 64 of the inner dimension, four in flight
// in 192 KB of shared memory, two warpgroups have 64 rows of the tile each in 128 registers a
// thread. While they write one tile, the slices of the next arrive. A slice of 48 KB is 4.2 MFLOP,
// 1024 cycles of the tensor cores, in which the two warpgroups read 80 KB of shared memory: within
// its 128 bytes a cycle.
//
// All SMs' slices at 600 TFLOP/s are 7 TB/s from the L2 cache. For the weight gradient, whose sums
// in f32 take their part of that too, two blocks are a cluster with 256 rows of C, and each brings
// half of B for both (+6 % measured). Where rows are grouped that does not pay: every group would
// waste half a tile more.
#include "kernels/gemm/grouped_gemm_wgmma.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kernels/device/hopper.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/gemm/grouped_product.cuh"

namespace sluice::cuda {

namespace {

constexpr int kRows = 128, kColumns = 256, kDepth = 64, kStages = 4;
constexpr int kWarpgroup = 128, kConsumers = 2;  // threads; warpgroups that multiply
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kBoxBytes = 64 * kDepth * 2;  // 64 rows or columns of a slice
constexpr int kABytes = kRows / 64 * kBoxBytes, kBBytes = kColumns / 64 * kBoxBytes;
constexpr int kStageBytes = kABytes + kBBytes;

struct Barriers {
  SharedBarrier full[kStages];   // the slice has arrived
  SharedBarrier empty[kStages];  // all warps of the cluster have read it
};
constexpr size_t kSharedBytes = size_t(kStages) * kStageBytes + sizeof(Barriers);

// Blocks that share B, and tiles of a cluster.
template <GroupedForm kForm>
constexpr int kCluster = kForm == GroupedForm::inner ? 2 : 1;
template <GroupedForm kForm>
using Tiles = GroupedTiles<kForm, kCluster<kForm> * kRows, kColumns>;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ inline int slices_of(const GroupedTile& tile) {
  return int((tile.k_end - tile.k + kDepth - 1) / kDepth);
}

// Which of the stages is next, and how often all have been used.
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// This block's part of one slice, asked for by one thread: its own A, its share of B for all.
template <GroupedForm kForm>
__device__ void request(uint8_t* stage, SharedBarrier& full, const CUtensorMap& a,
                        const CUtensorMap& b, const GroupedTile& tile, int64_t k) {
  constexpr int kBlocks = kCluster<kForm>, kBoxes = kColumns / 64 / kBlocks;
  constexpr uint16_t kAll = (1 << kBlocks) - 1;
  full.arrive_expecting(kStageBytes);
  const int rank = cluster_rank();
  const int m = int(tile.m) + rank * kRows, n = int(tile.n), at = int(tile.k + k);
  uint8_t* const to = stage + kABytes + rank * kBoxes * kBoxBytes;
  const int first = n + rank * kBoxes * 64;
  if constexpr (kForm == GroupedForm::inner) {
    for (int box = 0; box < kRows / 64; ++box)
      copy_box(stage + box * kBoxBytes, a, full, m + box * 64, at, 0);
  } else {
    copy_box(stage, a, full, at, m, 0);
  }
  if constexpr (kForm == GroupedForm::rows_nk) {
    copy_box(to, b, full, at, first, tile.group);
  } else {
    for (int box = 0; box < kBoxes; ++box) {
      uint8_t* const to_box = to + box * kBoxBytes;
      if constexpr (kForm == GroupedForm::rows_kn) {
        copy_box(to_box, b, full, first + box * 64, at, tile.group);
      } else {
        copy_box_to_all(to_box, b, full, first + box * 64, at, 0, kAll);
      }
    }
  }
}

// A cluster's first tile, and how many to the next.
template <GroupedForm kForm>
__device__ int64_t first_tile() {
  return blockIdx.x / kCluster<kForm>;
}
template <GroupedForm kForm>
__device__ int64_t tile_step() {
  return gridDim.x / kCluster<kForm>;
}

template <GroupedForm kForm>
__device__ void produce(uint8_t* stages, Barriers& barriers, const CUtensorMap& a,
                        const CUtensorMap& b, const Tiles<kForm>& tiles) {
  Turn turn;
  for (int64_t index = first_tile<kForm>(); index < tiles.count(); index += tile_step<kForm>()) {
    const GroupedTile tile = tiles[index];
    if (tile.group < 0 || threadIdx.x % kWarp != 0) continue;
    for (int slice = 0; slice < slices_of(tile); ++slice, turn.advance()) {
      barriers.empty[turn.stage].wait(turn.parity ^ 1);
      request<kForm>(stages + turn.stage * kStageBytes, barriers.full[turn.stage], a, b, tile,
                     int64_t(slice) * kDepth);
    }
  }
}

// Rows of the next group, which came with the last slice of this one. A row of K is 128 bytes of
// every box.
__device__ inline void zero_rows(uint8_t* stage, int64_t first) {
  constexpr int kThreadsHere = kConsumers * kWarpgroup, kPieces = 128 / 16;
  const int rows = kDepth - int(first);
  for (int i = int(threadIdx.x) - kWarpgroup; i < kStageBytes / kBoxBytes * rows * kPieces;
       i += kThreadsHere) {
    const int box = i / (rows * kPieces), piece = i % (rows * kPieces);
    *reinterpret_cast<uint4*>(stage + box * kBoxBytes + first * 128 + piece * 16) = {0, 0, 0, 0};
  }
  fence_shared_writes();
  named_barrier(1, kThreadsHere);
}

template <GroupedForm kForm>
__device__ void multiply(const uint8_t* stage, int consumer, bool add, float (&d)[128]) {
  constexpr bool kAByK = kForm == GroupedForm::inner, kBByK = kForm != GroupedForm::rows_nk;
  const uint8_t* const a = stage + consumer * kBoxBytes;
  const uint8_t* const b = stage + kABytes;
#pragma unroll
  for (int step = 0; step < kDepth / 16; ++step) {
    wgmma_64x256<kAByK, kBByK>(d, wgmma_operand(a + step * (kAByK ? 2048 : 32)),
                               wgmma_operand(b + step * (kBByK ? 2048 : 32), kBoxBytes),
                               add || step > 0);
  }
}

// write(row, column, four values): two neighbouring lanes of a row exchange halves, so that a lane
// has four neighbours and four lanes have 16 columns.
template <class Write>
__device__ void for_each_four(const float (&d)[128], const Write& write) {
  const int lane = int(threadIdx.x) % kWarp;
  const bool odd = lane % 2 != 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = int(threadIdx.x) % kWarpgroup / kWarp * 16 + lane / 4 + half * 8;
#pragma unroll
    for (int j = 0; j < kColumns / 8; j += 2) {
      const float* const left = d + 4 * j + 2 * half;
      const float* const right = left + 4;
      const float x = __shfl_xor_sync(kFullWarp, odd ? left[0] : right[0], 1);
      const float y = __shfl_xor_sync(kFullWarp, odd ? left[1] : right[1], 1);
      const int column = 8 * (j + odd) + lane % 4 / 2 * 4;
      write(row, column, odd ? float4{x, y, right[0], right[1]} : float4{left[0], left[1], x, y});
    }
  }
}

template <GroupedForm kForm>
__device__ void write_tile(const float (&d)[128], const GroupedProduct& p, const GroupedTile& tile,
                           int consumer) {
  const int64_t first = tile.m + cluster_rank() * kRows + consumer * 64;
  for_each_four(d, [&](int row, int column, float4 sum) {
    const int64_t m = first + row, n = tile.n + column;
    if (m >= tile.m_end || n >= p.N) return;
    if constexpr (kForm == GroupedForm::inner) {
      // Nobody else adds to this element: the order is that of the launches. The addition happens
      // in the L2 cache, and nothing waits for the old value.
      float* const c = static_cast<float*>(p.c) + tile.group * p.c_group + m * p.c_stride + n;
      asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(c),
                   "f"(sum.x), "f"(sum.y), "f"(sum.z), "f"(sum.w)
                   : "memory");
    } else {
      uint2* const c = reinterpret_cast<uint2*>(static_cast<Bf16*>(p.c) + m * p.c_stride + n);
      if (p.beta != 0) {
        const uint2 old = *c;
        const float2 low = unpack_bf16(old.x), high = unpack_bf16(old.y);
        sum = {sum.x + p.beta * low.x, sum.y + p.beta * low.y, sum.z + p.beta * high.x,
               sum.w + p.beta * high.y};
      }
      *c = {pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w)};
    }
  });
}

template <GroupedForm kForm>
__device__ void consume(uint8_t* stages, Barriers& barriers, const Tiles<kForm>& tiles) {
  const int consumer = int(threadIdx.x) / kWarpgroup - 1;
  const auto release = [&](int stage) {
    if (threadIdx.x % kWarp != 0) return;
    if constexpr (kCluster<kForm> == 1) {
      barriers.empty[stage].arrive();
    } else {
      for (int rank = 0; rank < kCluster<kForm>; ++rank) barriers.empty[stage].arrive_at(rank);
    }
  };
  float d[128];
  Turn turn;
  for (int64_t index = first_tile<kForm>(); index < tiles.count(); index += tile_step<kForm>()) {
    const GroupedTile tile = tiles[index];
    if (tile.group < 0) continue;
    const int slices = slices_of(tile);
    int last = 0;
    for (int slice = 0; slice < slices; ++slice, turn.advance()) {
      uint8_t* const stage = stages + turn.stage * kStageBytes;
      barriers.full[turn.stage].wait(turn.parity);
      if constexpr (kForm == GroupedForm::inner) {
        const int64_t left = tile.k_end - tile.k - int64_t(slice) * kDepth;
        if (left < kDepth) zero_rows(stage, left);
      }
      wgmma_fence();
      multiply<kForm>(stage, consumer, slice > 0, d);
      wgmma_commit();
      wgmma_wait<1>();
      if (slice > 0) release(last);  // the slice before this one has been read
      last = turn.stage;
    }
    wgmma_wait<0>();
    release(last);
    write_tile<kForm>(d, tiles.p, tile, consumer);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <GroupedForm kForm>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_wgmma_kernel(const __grid_constant__ CUtensorMap a,
                         const __grid_constant__ CUtensorMap b,
                         const __grid_constant__ GroupedProduct p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t stages[];
  Barriers& barriers = *reinterpret_cast<Barriers*>(stages + kStages * kStageBytes);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      barriers.full[stage].init(1);
      barriers.empty[stage].init(kCluster<kForm> * kConsumers * kWarpgroup / kWarp);
    }
    fence_barriers();
  }
  cluster_barrier();
  const Tiles<kForm> tiles(p);
  if (threadIdx.x < kWarpgroup) {
    fewer_registers<40>();
    if (threadIdx.x < kWarp) produce<kForm>(stages, barriers, a, b, tiles);
  } else {
    more_registers<232>();
    consume<kForm>(stages, barriers, tiles);
  }
  __syncwarp();
  cluster_barrier();  // the other block may still write here, or arrive
#else
  __trap();  // the host asks for this on compute capability 9.0 alone: build for sm_90a
#endif
}

// A tensor (z, y, x) of bf16 as the copy engine takes boxes of 64 x `box_y` from it.
CUtensorMap tensor_map(const Bf16* data, int64_t x, int64_t y, int64_t z, int64_t y_stride,
                       int64_t z_stride, int box_y) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found));
    SLUICE_CHECK(found == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  const cuuint64_t sizes[] = {cuuint64_t(x), cuuint64_t(y), cuuint64_t(z)};
  const cuuint64_t strides[] = {cuuint64_t(y_stride) * sizeof(Bf16),
                                cuuint64_t(z_stride) * sizeof(Bf16)};
  const cuuint32_t box[] = {64, cuuint32_t(box_y), 1}, steps[] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<Bf16*>(data), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  SLUICE_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error ", int(result),
               " for a tensor of (", z, ", ", y, ", ", x, "), rows ", y_stride, " apart");
  return map;
}

int attribute_of_device(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

template <GroupedForm kForm>
void launch_wgmma(const Context& ctx, const char* name, const GroupedProduct& p) {
  const bool inner = kForm == GroupedForm::inner, nk = kForm == GroupedForm::rows_nk;
  const int64_t z = inner ? 1 : p.groups;
  const CUtensorMap a = inner ? tensor_map(p.a, p.M, p.K, 1, p.a_stride, p.K * p.a_stride, kDepth)
                              : tensor_map(p.a, p.K, p.M, 1, p.a_stride, p.M * p.a_stride, kRows);
  const int64_t b_group = inner ? p.K * p.b_stride : p.b_group;
  const CUtensorMap b = nk ? tensor_map(p.b, p.K, p.N, z, p.b_stride, b_group, kColumns)
                           : tensor_map(p.b, p.N, p.K, z, p.b_stride, b_group, kDepth);
  const int64_t clusters =
      std::min<int64_t>(Tiles<kForm>::bound(p),
                        attribute_of_device(cudaDevAttrMultiProcessorCount) / kCluster<kForm>);
  launch_clusters(ctx, name,
                  {.blocks = unsigned(clusters * kCluster<kForm>),
                   .threads = kThreads,
                   .shared_bytes = kSharedBytes},
                  kCluster<kForm>, grouped_wgmma_kernel<kForm>, a, b, p);
}

bool fits(int64_t M, int64_t N, int64_t K) {
  return M > 0 && N > 0 && K > 0 && attribute_of_device(cudaDevAttrComputeCapabilityMajor) == 9;
}

}  // namespace

bool fits_grouped_wgmma(const GroupedGemm& args) {
  return fits(args.a.dim(0), args.c.dim(1), args.a.dim(1));
}
bool fits_grouped_wgmma(const GroupedGemmWeight& args) {
  return fits(args.a.dim(1), args.b.dim(1), args.a.dim(0));
}

void grouped_gemm_wgmma(const Context& ctx, const GroupedGemm& args) {
  const GroupedProduct product(args);
  if (args.transpose_weights) {
    launch_wgmma<GroupedForm::rows_nk>(ctx, "grouped_gemm", product);
  } else {
    launch_wgmma<GroupedForm::rows_kn>(ctx, "grouped_gemm", product);
  }
}

void grouped_gemm_weight_wgmma(const Context& ctx, const GroupedGemmWeight& args) {
  launch_wgmma<GroupedForm::inner>(ctx, "grouped_gemm_weight", GroupedProduct(args));
}

}  // namespace sluice::cuda
