#include "kernels/embedding/embedding_cpu.h"

#include <algorithm>

namespace sluice::cpu {
namespace {

// Columns that a thread of the backward owns: a few cache lines, so that threads do not share one.
constexpr int64_t kColumns = 64;

int32_t token_at(const ConstTensorView& tokens, int64_t index) {
  return tokens.row<int32_t>(index / tokens.row_size())[index % tokens.row_size()];
}

}  // namespace

template <class T>
void embedding_forward(const EmbeddingForward& args) {
  const int64_t tokens = args.tokens.numel();
  const int64_t D = args.y.row_size();
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    std::copy_n(args.weight.row<T>(token_at(args.tokens, t)), D, args.y.row<T>(t));
  }
}

// Threads share out the columns, not the tokens: each walks all tokens in order, so no two write
// the same element, and no sort is needed.
template <class T>
void embedding_backward(const EmbeddingBackward& args) {
  const int64_t tokens = args.tokens.numel();
  const int64_t D = args.dy.row_size();
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < D; begin += kColumns) {
    const int64_t end = std::min(D, begin + kColumns);
    for (int64_t t = 0; t < tokens; ++t) {
      const T* const dy = args.dy.row<T>(t);
      T* const dweight = args.dweight.row<T>(token_at(args.tokens, t));
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) dweight[i] += dy[i];
    }
  }
}

template void embedding_forward<float>(const EmbeddingForward&);
template void embedding_forward<double>(const EmbeddingForward&);
template void embedding_backward<float>(const EmbeddingBackward&);
template void embedding_backward<double>(const EmbeddingBackward&);

}  // namespace sluice::cpu
