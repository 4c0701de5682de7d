// Floor: FLOPs over the rate of wgmma, that of a dense product. One block an SM walks the tiles of
// 128 x 256: a warp has the copy engine bring slices of 64 of the inner dimension, three or four in
// flight in 48 KB of shared memory each, two warpgroups have 64 rows of the tile each in 128
// registers a thread. A slice is 4.2 MFLOP, 1024 cycles of the tensor cores, in which the two
// warpgroups read 80 KB of shared memory: within its 128 bytes a cycle.
//
// Plain sums go to memory from those registers, while the slices of the next tile arrive. SwiGLU,
// its gradient, and sums in f32 would keep the tensor cores waiting: they go by way of 64 KB of
// shared memory in place of a fourth stage (grouped_staged.cuh), while the next tile is multiplied.
// At D 2048, F 4096 that took down's data gradient with SwiGLU's from 1.42 to 1.15 ms and the
// weight gradients from 3.32 to 3.07; with nothing written they take 2.60. Plain sums lost by it.
// The warps that write are three: with more than 12 warps a block no thread has 128 registers for
// sums and some more.
//
// All SMs' slices at 600 TFLOP/s are 7 TB/s from the L2 cache, so blocks work in pairs, as
// clusters. For the weight gradient, whose sums in f32 take their part of that too, a pair has 256
// rows of C, and each brings half of B for both (+6 % measured). Where rows are grouped every group
// would waste half a tile more that way: there a pair has 512 columns, and each brings half of A
// (up with SwiGLU +7 %, the data gradient of up +15 % at D 2048, F 4096).
//
// Tiles of 128 x 128, each of one warpgroup, so that the other multiplies while one writes, were
// slower: they ask for a third more of the caches (480 TFLOP/s for 591, in pairs 567 for 612).
// Clusters of four, which ask for a quarter or two fifths less, were no faster for weight
// gradients, and 3 to 6 % slower for rows; nor was it any faster to have blocks begin spread over a
// tile's time, so that they do not write at once.
//
// What is left is the card's power limit: with zeros for numbers all of these are 10 to 25 %
// faster. So what counts is bytes: a band of tiles is of one expert, whose weights are read once.
// An independent product begins while the last tiles of the one before are multiplied.
#include "kernels/gemm/grouped_gemm_wgmma.h"

#include "kernels/device/hopper.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/warp_roles.cuh"
#include "kernels/gemm/grouped_product.cuh"
#include "kernels/gemm/grouped_results.cuh"
#include "kernels/gemm/grouped_staged.cuh"

namespace sluice::cuda {

namespace {

constexpr int kRows = 128, kColumns = 256;
constexpr int kWarpgroup = 128, kConsumers = 2;  // threads; warpgroups that multiply
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kMaxStages = 6;
constexpr int kSums = kColumns / 2;  // of a thread: it has 64 rows of a tile with 127 others

struct Barriers {
  SharedBarrier full[kMaxStages];   // the slice has arrived
  SharedBarrier empty[kMaxStages];  // all warps of the cluster have read it
  SharedBarrier staged;             // a tile's sums are in shared memory
  SharedBarrier taken;              // and have been read
};

// A product whose rows or inner dimension are grouped, and its `kBlocks` blocks of a cluster, which
// lie below each other and share B where the inner dimension is grouped, else lie side by side and
// share A. A slice has `kDepth` of the inner dimension.
template <GroupedForm kForm_, GroupedResult kResult_, int kBlocks_, int kDepth_ = 64>
struct Kind {
  static constexpr GroupedForm kForm = kForm_;
  static constexpr GroupedResult kResult = kResult_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr bool kInner = kForm == GroupedForm::inner;
  // Sums go to memory by way of shared memory, which takes a stage: it pays where much is to be
  // done with them, or they are f32.
  static constexpr bool kWritten = kResult != GroupedResult::plain;  // by warps of their own
  static constexpr bool kStaged = kInner || kWritten;
  static constexpr int kDepth = kDepth_;
  static constexpr int kBoxBytes = 64 * kDepth * 2;  // 64 rows or columns of a slice
  static constexpr int kABytes = kRows / 64 * kBoxBytes, kBBytes = kColumns / 64 * kBoxBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kStages = (kStaged ? 3 : 4) * 64 / kDepth;
  static_assert(kStages <= kMaxStages);
  static constexpr int kStagedBytes = kStaged ? 64 << 10 : 0;
  static constexpr size_t kSharedBytes = kStages * kStageBytes + kStagedBytes + sizeof(Barriers);
  using Tiles =
      GroupedTiles<kForm, kInner ? kBlocks * kRows : kRows, kInner ? kColumns : kBlocks * kColumns>;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <class K>
__device__ int slices_of(const GroupedTile& tile) {
  return int((tile.k_end - tile.k + K::kDepth - 1) / K::kDepth);
}

// This block's part of a cluster's tile.
template <class K>
__device__ GroupedTile own_part(GroupedTile tile) {
  if (K::kInner) {
    tile.m += cluster_rank() * kRows;
  } else {
    tile.n += cluster_rank() * kColumns;
  }
  return tile;
}

// This block's part of one slice, asked for by one thread: what it has alone, and its share, for
// all, of what the cluster has in common.
template <class K>
__device__ void request(uint8_t* stage, SharedBarrier& full, const CUtensorMap& a,
                        const CUtensorMap& b, const GroupedTile& tile, int64_t k, int64_t N) {
  constexpr uint16_t kAll = (1 << K::kBlocks) - 1;
  constexpr int kBoxesA = kRows / 64, kBoxesB = kColumns / 64;
  full.arrive_expecting(K::kStageBytes);
  const int rank = cluster_rank();
  const int m = int(tile.m), n = int(tile.n), at = int(tile.k + k);
  uint8_t* const to_b = stage + K::kABytes;
  if constexpr (K::kInner) {
    for (int box = 0; box < kBoxesA; ++box)
      copy_box(stage + box * K::kBoxBytes, a, full, m + box * 64, at, 0);
    for (int i = 0; i < kBoxesB / K::kBlocks; ++i) {
      const int box = rank * (kBoxesB / K::kBlocks) + i;
      copy_box_to_all(to_b + box * K::kBoxBytes, b, full, n + box * 64, at, 0, kAll);
    }
    return;
  }
  if constexpr (K::kBlocks == 1) {
    copy_box(stage, a, full, at, m, 0);
  } else {
    copy_box_to_all(stage + rank * K::kBoxBytes, a, full, at, m + rank * 64, 0, kAll);
  }
  if constexpr (K::kResult == GroupedResult::swiglu) {
    copy_box(to_b, b, full, at, n / 2, tile.group);
    copy_box(to_b + K::kBBytes / 2, b, full, at, n / 2 + int(N / 2), tile.group);
  } else if constexpr (K::kForm == GroupedForm::rows_nk) {
    copy_box(to_b, b, full, at, n, tile.group);
  } else {
    for (int box = 0; box < kBoxesB; ++box)
      copy_box(to_b + box * K::kBoxBytes, b, full, n + box * 64, at, tile.group);
  }
}

// A cluster's first tile, and how many to the next.
template <class K>
__device__ int64_t first_tile() {
  return blockIdx.x / K::kBlocks;
}
template <class K>
__device__ int64_t tile_step() {
  return gridDim.x / K::kBlocks;
}

// The launch after this one may begin, and with it know that the one before this has ended.
__device__ inline void pass_on() {
  wait_for_launch_before();
  let_next_begin();
}

template <class K>
__device__ void produce(uint8_t* stages, Barriers& barriers, const CUtensorMap& a,
                        const CUtensorMap& b, const typename K::Tiles& tiles) {
  RingCursor<K::kStages> cursor;
  bool first = true;
  for (int64_t index = first_tile<K>(); index < tiles.count(); index += tile_step<K>()) {
    const GroupedTile tile = own_part<K>(tiles[index]);
    if (tile.group < 0 || threadIdx.x % kWarp != 0) continue;
    for (int slice = 0; slice < slices_of<K>(tile); ++slice, cursor.advance()) {
      barriers.empty[cursor.stage].wait(cursor.parity ^ 1);
      request<K>(stages + cursor.stage * K::kStageBytes, barriers.full[cursor.stage], a, b, tile,
                 int64_t(slice) * K::kDepth, tiles.p.N);
    }
    if (first) pass_on();
    first = false;
  }
  if (first) pass_on();
}

// Rows of the next group, which came with the last slice of this one. A row of K is 128 bytes of
// every box.
template <class K>
__device__ void zero_rows(uint8_t* stage, int64_t first) {
  constexpr int kThreadsHere = kConsumers * kWarpgroup, kPieces = 128 / 16;
  const int rows = K::kDepth - int(first);
  for (int i = int(threadIdx.x) - kWarpgroup; i < K::kStageBytes / K::kBoxBytes * rows * kPieces;
       i += kThreadsHere) {
    const int box = i / (rows * kPieces), piece = i % (rows * kPieces);
    *reinterpret_cast<uint4*>(stage + box * K::kBoxBytes + first * 128 + piece * 16) = {0, 0, 0, 0};
  }
  fence_shared_writes();
  named_barrier(1, kThreadsHere);
}

template <class K>
__device__ void multiply(const uint8_t* stage, int consumer, bool add, float (&d)[kSums]) {
  constexpr bool kAByK = K::kInner, kBByK = K::kForm != GroupedForm::rows_nk;
  const uint8_t* const a = stage + consumer * K::kBoxBytes;
  const uint8_t* const b = stage + K::kABytes;
#pragma unroll
  for (int step = 0; step < K::kDepth / 16; ++step) {
    wgmma_64x256<kAByK, kBByK>(d, wgmma_operand(a + step * (kAByK ? 2048 : 32)),
                               wgmma_operand(b + step * (kBByK ? 2048 : 32), K::kBoxBytes),
                               add || step > 0);
  }
}

template <class K>
__device__ void consume(uint8_t* stages, uint8_t* staged, Barriers& barriers, const CUtensorMap& c,
                        const typename K::Tiles& tiles) {
  const int consumer = int(threadIdx.x) / kWarpgroup - 1;
  const auto release = [&](int stage) {
    if (threadIdx.x % kWarp != 0) return;
    if constexpr (K::kBlocks == 1) {
      barriers.empty[stage].arrive();
    } else {
      for (int rank = 0; rank < K::kBlocks; ++rank) barriers.empty[stage].arrive_at(rank);
    }
  };
  float d[kSums];
  uint32_t parity = 0;  // of the room's uses
  RingCursor<K::kStages> cursor;
  for (int64_t index = first_tile<K>(); index < tiles.count(); index += tile_step<K>()) {
    const GroupedTile tile = own_part<K>(tiles[index]);
    if (tile.group < 0) continue;
    const int slices = slices_of<K>(tile);
    const int64_t first = tile.m + consumer * 64;
    const bool any_row = first < tile.m_end;  // else the other warpgroup multiplies alone
    if constexpr (K::kInner) {
      if (slices == 0) {  // sums that nothing adds to, where they are to be overwritten
        store_zeros_f32<kColumns>(tiles.p, first, tile);
        continue;
      }
    }
    int last = 0;
    for (int slice = 0; slice < slices; ++slice, cursor.advance()) {
      uint8_t* const stage = stages + cursor.stage * K::kStageBytes;
      barriers.full[cursor.stage].wait(cursor.parity);
      if constexpr (K::kInner) {
        const int64_t left = tile.k_end - tile.k - int64_t(slice) * K::kDepth;
        if (left < K::kDepth) zero_rows<K>(stage, left);
      }
      if (any_row) {
        wgmma_fence();
        multiply<K>(stage, consumer, slice > 0, d);
        wgmma_commit();
        wgmma_wait<1>();
      }
      if (slice > 0) release(last);  // the slice before this one has been read
      last = cursor.stage;
    }
    wgmma_wait<0>();
    release(last);
    if constexpr (K::kWritten) {
      barriers.taken.wait(parity ^ 1);
      const StagedSums rows{reinterpret_cast<Bf16*>(staged)};
      if (any_row) stage_sums(d, rows.from_row(consumer * 64));
      __syncwarp();
      if (threadIdx.x % kWarp == 0) barriers.staged.arrive();
      parity ^= 1;
    } else if constexpr (K::kInner) {
      uint8_t* const room = staged + consumer * kRoomBytes;
      if (any_row) store_sums_f32(d, room, c, tiles.p.beta, first, tile, 2 + consumer);
    } else if (any_row) {
      store_sums(d, tiles.p, first, tile);
    }
  }
  if (K::kInner && threadIdx.x % kWarpgroup == 0) wait_until_boxes_are_stored();
}

// By the warps of the first warpgroup but the one that asks for slices.
template <class K>
__device__ void write(uint8_t* staged, Barriers& barriers, const typename K::Tiles& tiles,
                      const SwigluOperands& swiglu) {
  uint32_t parity = 0;
  for (int64_t index = first_tile<K>(); index < tiles.count(); index += tile_step<K>()) {
    const GroupedTile tile = own_part<K>(tiles[index]);
    if (tile.group < 0) continue;
    const StagedRows rows{.sums = {reinterpret_cast<Bf16*>(staged)},
                          .first = tile.m,
                          .count = int(min(int64_t{kRows}, tile.m_end - tile.m)),
                          .column = tile.n,
                          .writer = int(threadIdx.x) / kWarp - 1};
    const auto arrived = [&] { barriers.staged.wait(parity); };
    if constexpr (K::kResult == GroupedResult::swiglu) {
      arrived();
      write_swiglu(rows, tiles.p, swiglu);
    } else {
      write_swiglu_gradient(rows, swiglu, arrived);
    }
    __syncwarp();
    if (threadIdx.x % kWarp == 0) barriers.taken.arrive();
    parity ^= 1;
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <class K>
__global__ void __launch_bounds__(kThreadsIfWhole<kThreads>, 1)
    grouped_wgmma_kernel(const __grid_constant__ CUtensorMap a,
                         const __grid_constant__ CUtensorMap b,
                         const __grid_constant__ CUtensorMap c,
                         const __grid_constant__ GroupedProduct p,
                         const __grid_constant__ SwigluOperands swiglu) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t stages[];
  uint8_t* const staged = stages + K::kStages * K::kStageBytes;
  Barriers& barriers = *reinterpret_cast<Barriers*>(staged + K::kStagedBytes);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < K::kStages; ++stage) {
      barriers.full[stage].init(1);
      barriers.empty[stage].init(K::kBlocks * kConsumers * kWarpgroup / kWarp);
    }
    barriers.staged.init(kConsumers * kWarpgroup / kWarp);
    barriers.taken.init(kWriters);
    fence_barriers();
  }
  cluster_barrier();
  const typename K::Tiles tiles(p);
  if (threadIdx.x < kWarpgroup) {
    fewer_registers<K::kWritten ? 152 : 40>();
    if (threadIdx.x < kWarp) {
      produce<K>(stages, barriers, a, b, tiles);
    } else if constexpr (K::kWritten) {
      write<K>(staged, barriers, tiles, swiglu);
    }
  } else {
    more_registers<K::kWritten ? 176 : 232>();
    consume<K>(stages, staged, barriers, c, tiles);
  }
  __syncwarp();
  cluster_barrier();  // the other block may still write here, or arrive
#endif
}

int attribute_of_device(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

template <class K>
void launch_wgmma(const Context& ctx, const char* name, const GroupedProduct& p,
                  const SwigluOperands& swiglu = {}) {
  constexpr bool nk = K::kForm == GroupedForm::rows_nk;
  const int64_t z = K::kInner ? 1 : p.groups;
  const CUtensorMap a =
      K::kInner ? tensor_map(p.a, p.M, p.K, 1, p.a_stride, p.K * p.a_stride, K::kDepth)
                : tensor_map(p.a, p.K, p.M, 1, p.a_stride, p.M * p.a_stride, kRows / K::kBlocks);
  const int64_t b_group = K::kInner ? p.K * p.b_stride : p.b_group;
  constexpr int kBoxes = K::kResult == GroupedResult::swiglu ? 2 : 1;
  const CUtensorMap b = nk ? tensor_map(p.b, p.K, p.N, z, p.b_stride, b_group, kColumns / kBoxes)
                           : tensor_map(p.b, p.N, p.K, z, p.b_stride, b_group, K::kDepth);
  const CUtensorMap c = K::kInner ? tensor_map(static_cast<const float*>(p.c), p.N, p.M, p.groups,
                                               p.c_stride, p.c_group, 64)
                                  : CUtensorMap{};
  const int64_t clusters = std::min<int64_t>(
      K::Tiles::bound(p), attribute_of_device(cudaDevAttrMultiProcessorCount) / K::kBlocks);
  launch_clusters(ctx, name,
                  {.blocks = unsigned(clusters * K::kBlocks),
                   .threads = kThreads,
                   .shared_bytes = K::kSharedBytes},
                  {.blocks = K::kBlocks, .early = p.independent}, grouped_wgmma_kernel<K>, a, b, c,
                  p, swiglu);
}

// Two blocks side by side share A, unless a good part of the last pair would have no columns.
template <GroupedForm kForm, GroupedResult kResult>
void launch_rows(const Context& ctx, const char* name, const GroupedProduct& p,
                 const SwigluOperands& swiglu = {}) {
  const int64_t tiles = ceil_div(p.N, kColumns);
  if (tiles % 2 == 0 || tiles > 8) {
    launch_wgmma<Kind<kForm, kResult, 2>>(ctx, name, p, swiglu);
  } else {
    launch_wgmma<Kind<kForm, kResult, 1>>(ctx, name, p, swiglu);
  }
}

bool fits(int64_t M, int64_t N, int64_t K) {
  using Least = Kind<GroupedForm::rows_nk, GroupedResult::plain, 1>;
  return M > 0 && N > 0 && K > 0 && is_whole(grouped_wgmma_kernel<Least>, kThreads);
}

// A dense product of so few tiles that they are not all blocks' is better off in smaller ones.
bool fills_device(const ConstTensorView& offsets, int64_t rows, int64_t columns) {
  return offsets || ceil_div(rows, kRows) * ceil_div(columns, kColumns) >=
                        attribute_of_device(cudaDevAttrMultiProcessorCount);
}

}  // namespace

bool fits_grouped_wgmma(const GroupedGemm& args) {
  return fits(args.a.dim(0), args.c.dim(1), args.a.dim(1));
}
bool fits_grouped_wgmma(const GroupedGemmWeight& args) {
  return fits(args.a.dim(1), args.b.dim(1), args.a.dim(0));
}

bool fits_grouped_ffn(const GroupedUp& args) {
  return args.kind == Activation::swiglu && args.rows.dtype == DType::bf16 && in_packs(args.rows) &&
         in_packs(args.weights) && in_packs(args.up) && in_packs(args.hidden) &&
         fills_device(args.offsets, args.rows.dim(0), args.up.dim(1)) &&
         fits(args.rows.dim(0), args.up.dim(1), args.rows.dim(1));
}
bool fits_grouped_ffn(const GroupedDownBackward& args) {
  return args.kind == Activation::swiglu && args.dout.dtype == DType::bf16 && in_packs(args.dout) &&
         in_packs(args.weights) && in_packs(args.up) && in_packs(args.dup) &&
         in_packs(args.hidden) &&
         fills_device(args.offsets, args.dout.dim(0), args.hidden.dim(1)) &&
         fits(args.dout.dim(0), args.hidden.dim(1), args.dout.dim(1));
}

void grouped_gemm_wgmma(const Context& ctx, const GroupedGemm& args) {
  const GroupedProduct product(args);
  if (args.transpose_weights) {
    launch_rows<GroupedForm::rows_nk, GroupedResult::plain>(ctx, "grouped_gemm", product);
  } else {
    launch_rows<GroupedForm::rows_kn, GroupedResult::plain>(ctx, "grouped_gemm", product);
  }
}

void grouped_gemm_weight_wgmma(const Context& ctx, const GroupedGemmWeight& args) {
  // Adding asks memory for twice as much, so that slices come late: there shorter ones gain 10 %,
  // and lose 3 where sums overwrite.
  using Overwriting = Kind<GroupedForm::inner, GroupedResult::plain, 2>;
  using Adding = Kind<GroupedForm::inner, GroupedResult::plain, 2, 32>;
  constexpr const char* kName = "grouped_gemm_weight";
  if (args.beta == 0) return launch_wgmma<Overwriting>(ctx, kName, GroupedProduct(args));
  launch_wgmma<Adding>(ctx, kName, GroupedProduct(args));
}

void grouped_up_wgmma(const Context& ctx, const GroupedUp& args) {
  const GroupedProduct product(GroupedGemm{.a = args.rows,
                                           .weights = args.weights,
                                           .c = args.up,
                                           .offsets = args.offsets,
                                           .transpose_weights = true});
  launch_rows<GroupedForm::rows_nk, GroupedResult::swiglu>(ctx, "grouped_up", product,
                                                           {.hidden = pointer<Bf16>(args.hidden),
                                                            .hidden_stride = args.hidden.row_stride,
                                                            .F = args.hidden.dim(1)});
}

void grouped_down_backward_wgmma(const Context& ctx, const GroupedDownBackward& args) {
  const GroupedProduct product(GroupedGemm{
      .a = args.dout, .weights = args.weights, .c = args.hidden, .offsets = args.offsets});
  launch_rows<GroupedForm::rows_kn, GroupedResult::swiglu_gradient>(
      ctx, "grouped_down_backward", product,
      {.up = pointer<Bf16>(args.up),
       .up_stride = args.up.row_stride,
       .dup = pointer<Bf16>(args.dup),
       .dup_stride = args.dup.row_stride,
       .hidden = pointer<Bf16>(args.hidden),
       .hidden_stride = args.hidden.row_stride,
       .F = args.hidden.dim(1)});
}

}  // namespace sluice::cuda
