// The CPU side of token_permute, as its dispatcher sees it.
#pragma once

#include "kernels/token_permute/token_permute.h"

namespace sluice::cpu {

// cursor, taken: (X) i64, scratch.
void token_index(const TokenIndex& args, TensorView cursor, TensorView taken);

template <class T>
void token_permute_forward(const TokenPermuteForward& args);
template <class T>
void token_permute_backward(const TokenPermuteBackward& args);
template <class T>
void token_unpermute_forward(const TokenUnpermuteForward& args);
template <class T>
void token_unpermute_backward(const TokenUnpermuteBackward& args);

}  // namespace sluice::cpu
