// The local half of a reduction: elements of all ranks, combined in the order of the halving tree.
#pragma once

#include <cstdint>
#include <span>

#include "parallel/communicator.h"

namespace sluice {

// out[i] = leaves[0][i] op leaves[1][i] op ..., as halving_tree.h groups them. `out` may be one of
// the leaves. bf16 is combined in f32 and rounded once.
void ordered_reduce(DType dtype, ReduceOp op, std::span<const void* const> leaves, int64_t count,
                    void* out);

}  // namespace sluice
