// The CUDA side of topk_router, as its dispatcher sees it.
#pragma once

#include "kernels/core/context.h"
#include "kernels/topk_router/topk_router.h"

namespace sluice::cuda {

void topk_router_forward(const Context& ctx, const TopkRouterForward& args);
void topk_router_backward(const Context& ctx, const TopkRouterBackward& args);

// partial: (B, RowBlocks(T, kStatisticsBlocks).count, 2 X + 1) f64, scratch: counts, mass and z of
// a block of tokens.
inline constexpr int64_t kStatisticsBlocks = 512;
void router_statistics(const Context& ctx, const RouterStatistics& args, const TensorView& partial);

void router_loss_backward(const Context& ctx, const RouterLossBackward& args);

}  // namespace sluice::cuda
