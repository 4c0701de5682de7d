// The CUDA side of token_permute, as its dispatcher sees it.
#pragma once

#include <algorithm>

#include "kernels/core/context.h"
#include "kernels/core/row_blocks.h"
#include "kernels/token_permute/token_permute.h"

namespace sluice::cuda {

// Pieces of a row's entries; a warp goes through one in order, 32 entries at a time, which is all
// waiting: short pieces, but not many in all, for one block adds up what they count.
inline RowBlocks index_pieces(int64_t B, int64_t row_entries) {
  constexpr int64_t kEntries = 128, kMaxPieces = 256;
  const int64_t wanted = (row_entries + kEntries - 1) / kEntries;
  return RowBlocks(
      row_entries,
      std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, kMaxPieces / std::max<int64_t>(1, B))));
}

// starts: (B * index_pieces(B, T k).count, X), row_starts: (B, X), both i32 scratch.
void token_index(const Context& ctx, const TokenIndex& args, const TensorView& starts,
                 const TensorView& row_starts);

void token_permute_forward(const Context& ctx, const TokenPermuteForward& args);
void token_permute_backward(const Context& ctx, const TokenPermuteBackward& args);
// The same in bf16, with what a router of up to kMostRouted experts leaves for x.
inline constexpr int64_t kMostRouted = 16;
void token_permute_router_backward(const Context& ctx, const TokenPermuteBackward& args);
void token_unpermute_forward(const Context& ctx, const TokenUnpermuteForward& args);
void token_unpermute_backward(const Context& ctx, const TokenUnpermuteBackward& args);

}  // namespace sluice::cuda
