// The CUDA side of adamw, as its dispatcher sees it.
#pragma once

#include "kernels/adamw/adamw.h"

namespace sluice::cuda {

void adamw(const Context& ctx, const AdamW& args);

}  // namespace sluice::cuda
