#include "parallel/ordered_reduce.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "kernels/core/halving_tree.h"

namespace sluice {
namespace {

constexpr int64_t kBlock =
    2048;  // elements combined at a time: a tree of blocks stays in L1 and L2

template <class T>
T widen(T value) {
  return value;
}
inline float widen(bf16 value) { return float(value); }

struct Sum {
  template <class A>
  static A combine(A a, A b) {
    return A(a + b);
  }
};
struct Max {
  template <class A>
  static A combine(A a, A b) {
    return b > a || b != b ? b : a;  // keeps a NaN from either side
  }
};

// Combines elements [begin, begin + count) of leaves [lo, hi) into `out`; `spare` has one block for
// every level below.
template <class Op, class T, class Wide>
void fold(std::span<const void* const> leaves, int64_t lo, int64_t hi, int64_t begin, int64_t count,
          Wide* out, Wide* spare) {
  if (hi - lo == 1) {
    const T* leaf = static_cast<const T*>(leaves[lo]) + begin;
    for (int64_t i = 0; i < count; ++i) out[i] = widen(leaf[i]);
    return;
  }
  const int64_t middle = halving_middle(lo, hi);
  fold<Op, T>(leaves, lo, middle, begin, count, out, spare);
  fold<Op, T>(leaves, middle, hi, begin, count, spare, spare + kBlock);
  for (int64_t i = 0; i < count; ++i) out[i] = Op::combine(out[i], spare[i]);
}

template <class Op, class T>
void reduce(std::span<const void* const> leaves, int64_t count, void* out) {
  using Wide = decltype(widen(T{}));
  const int64_t levels = std::bit_width(leaves.size()) + 1;
  std::vector<Wide> blocks((levels + 1) * kBlock);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t block = std::min(kBlock, count - begin);
    fold<Op, T>(leaves, 0, int64_t(leaves.size()), begin, block, blocks.data(),
                blocks.data() + kBlock);
    // Only now, because `out` may be a leaf.
    T* to = static_cast<T*>(out) + begin;
    for (int64_t i = 0; i < block; ++i) to[i] = T(blocks[i]);
  }
}

template <class T>
void reduce(ReduceOp op, std::span<const void* const> leaves, int64_t count, void* out) {
  if (op == ReduceOp::sum) return reduce<Sum, T>(leaves, count, out);
  return reduce<Max, T>(leaves, count, out);
}

}  // namespace

void ordered_reduce(DType dtype, ReduceOp op, std::span<const void* const> leaves, int64_t count,
                    void* out) {
  switch (dtype) {
    case DType::f64:
      return reduce<double>(op, leaves, count, out);
    case DType::f32:
      return reduce<float>(op, leaves, count, out);
    case DType::bf16:
      return reduce<bf16>(op, leaves, count, out);
    case DType::i64:
      return reduce<int64_t>(op, leaves, count, out);
    case DType::i32:
      return reduce<int32_t>(op, leaves, count, out);
    case DType::u16:
      return reduce<uint16_t>(op, leaves, count, out);
    case DType::u8:
      return reduce<uint8_t>(op, leaves, count, out);
  }
  throw Error(ExitCode::bug, "reduction of an unknown dtype");
}

}  // namespace sluice
