// The CPU side of topk_router, as its dispatcher sees it.
#pragma once

#include "kernels/topk_router/topk_router.h"

namespace sluice::cpu {

template <class T>
void topk_router_forward(const TopkRouterForward& args);

template <class T>
void topk_router_backward(const TopkRouterBackward& args);

// partial: (B, RowBlocks(T).count, 2 X + 1) f64, scratch: counts, mass and z of a block of tokens.
template <class T>
void router_statistics(const RouterStatistics& args, TensorView partial);

template <class T>
void router_report(const RouterReport& args);

template <class T>
void router_loss_backward(const RouterLossBackward& args);

}  // namespace sluice::cpu
