// The CUDA side of topk_router, as its dispatcher sees it.
#pragma once

#include <algorithm>

#include "kernels/core/context.h"
#include "kernels/core/row_blocks.h"
#include "kernels/topk_router/topk_router.h"

namespace sluice::cuda {

void topk_router_forward(const Context& ctx, const TopkRouterForward& args);
void topk_router_backward(const Context& ctx, const TopkRouterBackward& args);

// The blocks of tokens of a row that statistics are summed in: a warp goes through one in order.
inline RowBlocks statistics_blocks(int64_t B, int64_t T) {
  constexpr int64_t kBlocks = 4096, kMost = 2048;  // of all rows, of a row
  return RowBlocks(T, std::clamp<int64_t>(kBlocks / std::max<int64_t>(1, B), 1, kMost));
}
// partial: (B, statistics_blocks(B, T).count, 2 X + 1) f64, scratch: counts, mass and z of a block
// of tokens.
void router_statistics(const Context& ctx, const RouterStatistics& args, const TensorView& partial);

void router_loss_backward(const Context& ctx, const RouterLossBackward& args);

}  // namespace sluice::cuda
