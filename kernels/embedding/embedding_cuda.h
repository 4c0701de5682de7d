// The CUDA side of embedding, as its dispatcher sees it.
#pragma once

#include "kernels/embedding/embedding.h"

namespace sluice::cuda {

// A token outside [0, V) cannot be reported from here: its y is NaN, and no gradient takes its dy.
void embedding_forward(const Context& ctx, const EmbeddingForward& args);

inline constexpr int64_t kSortTile = 1024;  // tokens that a block of the sort owns
inline constexpr int64_t kSortBuckets = 512;
inline constexpr int64_t kPieceTokens = 32;  // sorted tokens that a block sums

// Scratch of the backward. n tokens
struct EmbeddingWork {
  TensorView ids;        // (2, n) i32, before and after a pass of the sort
  TensorView positions;  // (2, n) i32, where the ids stood
  TensorView counts;     // (kSortBuckets, tiles) i32
  TensorView edges;      // (pieces, 2, D) f32, sums of runs that a piece shares with its neighbours

  EmbeddingWork(Arena& scratch, int64_t n, int64_t D)
      : ids(scratch.alloc({2, n}, DType::i32)),
        positions(scratch.alloc({2, n}, DType::i32)),
        counts(scratch.alloc({kSortBuckets, (n + kSortTile - 1) / kSortTile}, DType::i32)),
        edges(scratch.alloc({(n + kPieceTokens - 1) / kPieceTokens, 2, D}, DType::f32)) {}
};
void embedding_backward(const Context& ctx, const EmbeddingBackward& args,
                        const EmbeddingWork& work);

}  // namespace sluice::cuda
