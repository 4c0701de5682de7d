// The CUDA side of router_report, as its dispatcher sees it.
#pragma once

#include "kernels/topk_router/topk_router.h"

namespace sluice::cuda {

void router_report(const Context& ctx, const RouterReport& args);

}  // namespace sluice::cuda
