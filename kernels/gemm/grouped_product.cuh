// What the grouped kernels on tensor cores are given, and which tile of it a block makes.
#pragma once

#include "kernels/core/packs.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/groups.cuh"

namespace sluice::cuda {

// What is grouped, and how B lies in memory.
enum class GroupedForm {
  rows_nk,  // groups of rows; B is (N, K)
  rows_kn,  // groups of rows; B is (K, N)
  inner,    // groups of the inner dimension; A is (K, M), B is (K, N), C is f32; beta is 0 or 1
};

struct GroupedProduct {
  const Bf16* a;
  int64_t a_stride;
  const Bf16* b;
  int64_t b_stride, b_group;
  void* c;
  int64_t c_stride, c_group;
  int64_t M, N, K;         // M or K: of all groups together
  const int64_t* offsets;  // null: one group of all rows
  int groups;
  float beta;
  bool independent;  // of the operator before

  explicit GroupedProduct(const GroupedGemm& args)
      : a(pointer<Bf16>(args.a)),
        a_stride(args.a.row_stride),
        b(pointer<Bf16>(args.weights)),
        b_stride(args.weights.row_stride),
        b_group(args.weights.dim(1) * args.weights.row_stride),
        c(args.c.data),
        c_stride(args.c.row_stride),
        c_group(0),
        M(args.a.dim(0)),
        N(args.c.dim(1)),
        K(args.a.dim(1)),
        offsets(optional_pointer<int64_t>(args.offsets)),
        groups(args.offsets ? int(args.offsets.numel() - 1) : 1),
        beta(float(args.beta)),
        independent(args.independent) {}
  explicit GroupedProduct(const GroupedGemmWeight& args)
      : a(pointer<Bf16>(args.a)),
        a_stride(args.a.row_stride),
        b(pointer<Bf16>(args.b)),
        b_stride(args.b.row_stride),
        b_group(0),
        c(args.weights.data),
        c_stride(args.weights.row_stride),
        c_group(args.weights.dim(1) * args.weights.row_stride),
        M(args.a.dim(1)),
        N(args.b.dim(1)),
        K(args.a.dim(0)),
        offsets(args.offsets.as<int64_t>()),
        groups(int(args.offsets.numel() - 1)),
        beta(float(args.beta)),
        independent(args.independent) {}
};

// What becomes of the sums of a product whose rows are grouped.
enum class GroupedResult {
  plain,            // C = sums + beta C
  swiglu,           // C (rows, 2F) = sums: gate, then up; hidden = silu(gate) * up
  swiglu_gradient,  // sums are the gradient of hidden (rows, F): what it is of gate and up goes to
                    // dup; hidden is computed again. There is no C.
};
struct SwigluOperands {
  const Bf16* up = nullptr;  // (rows, 2F): gate, then up
  int64_t up_stride = 0;
  Bf16* dup = nullptr;  // (rows, 2F)
  int64_t dup_stride = 0;
  Bf16* hidden = nullptr;  // (rows, F)
  int64_t hidden_stride = 0;
  int64_t F = 0;
};

// A tile of C: rows [m, m_end) as far as they are in the tile, columns from n on, sums over
// [k, k_end).
struct GroupedTile {
  int group = -1;  // -1: nothing to do
  int64_t m, m_end, n, k, k_end;
};

// All tiles of kRows x kColumns of a product, in an order that keeps neighbours in the L2 cache.
// Built and asked by whole warps.
template <GroupedForm kForm, int kRows, int kColumns>
struct GroupedTiles {
  // Rows of some 2048 in a band.
  static constexpr int kBand = 2048 / kRows > 16 ? 16 : 2048 / kRows;
  const GroupedProduct& p;
  int row_tiles, column_tiles;  // of all groups; of one where the inner dimension is grouped

  __device__ explicit GroupedTiles(const GroupedProduct& product) : p(product) {
    column_tiles = int((p.N + kColumns - 1) / kColumns);
    row_tiles = kForm == GroupedForm::inner || p.offsets == nullptr
                    ? int((p.M + kRows - 1) / kRows)
                    : count_group_tiles<kRows>(p.offsets, p.groups);
  }
  // On the host: of which there are at most so many.
  static int64_t bound(const GroupedProduct& p) {
    const int64_t columns = (p.N + kColumns - 1) / kColumns;
    if (kForm == GroupedForm::inner) return p.groups * ((p.M + kRows - 1) / kRows) * columns;
    return max_row_tiles(p.M, p.groups, kRows) * columns;
  }

  __device__ int64_t count() const {
    return int64_t(row_tiles) * column_tiles * (kForm == GroupedForm::inner ? p.groups : 1);
  }
  __device__ GroupedTile operator[](int64_t index) const {
    GroupedTile tile;
    if (index >= count()) return tile;
    if constexpr (kForm == GroupedForm::inner) {
      const int64_t tiles = int64_t(row_tiles) * column_tiles;
      const int group = int(index / tiles);
      const BandedTile at(index % tiles, row_tiles, column_tiles, kBand);
      tile = {-1,
              int64_t(at.row) * kRows,
              p.M,
              int64_t(at.column) * kColumns,
              p.offsets[group],
              p.offsets[group + 1]};
      if (tile.k < tile.k_end || p.beta == 0) tile.group = group;
    } else {
      const TiledGroup of =
          p.offsets == nullptr
              ? TiledGroup{0, 0, p.M, 0}
              : find_tiled_group<kRows>(p.offsets, p.groups, int(index / column_tiles));
      const BandedTile at = in_group(index - int64_t(of.first_tile) * column_tiles,
                                     int((of.end - of.begin + kRows - 1) / kRows));
      tile = {of.group, of.begin + int64_t(at.row) * kRows,
              of.end,   int64_t(at.column) * kColumns,
              0,        p.K};
    }
    return tile;
  }

 private:
  // A band is of one group, so that its tiles share the group's weights: a group that is little
  // more than a band is one.
  __device__ BandedTile in_group(int64_t index, int tiles) const {
    constexpr int kMost = kBand * 3 / 2;
    const int bands = (tiles + kMost - 1) / kMost;
    return BandedTile(index, tiles, column_tiles, (tiles + bands - 1) / bands);
  }
};

}  // namespace sluice::cuda
