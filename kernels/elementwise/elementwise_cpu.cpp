#include "kernels/elementwise/elementwise_cpu.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "kernels/core/dispatch.h"
#include "kernels/core/halving_tree.h"
#include "kernels/core/row_blocks.h"

namespace sluice::cpu {

namespace {

// Parallel over pieces of rows: a packed tensor is one long row, a strided one many short ones.
constexpr int64_t kPiece = 16384;  // elements

struct Pieces {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t per_row = 0;

  explicit Pieces(bool packed, const Dims& dims)
      : rows(packed ? 1 : dims.rows()),
        columns(packed ? dims.numel() : dims.row_size()),
        per_row((columns + kPiece - 1) / kPiece) {}
  int64_t count() const { return rows * per_row; }
};

// body(row, first column, number of columns)
template <class Body>
void for_each_piece(const Pieces& pieces, const Body& body) {
#pragma omp parallel for schedule(static)
  for (int64_t piece = 0; piece < pieces.count(); ++piece) {
    const int64_t begin = piece % pieces.per_row * kPiece;
    body(piece / pieces.per_row, begin, std::min(kPiece, pieces.columns - begin));
  }
}

char* bytes_at(const TensorView& view, int64_t row, int64_t column) {
  return static_cast<char*>(view.data) +
         (row * view.row_stride + column) * int64_t(size_of(view.dtype));
}
const char* bytes_at(const ConstTensorView& view, int64_t row, int64_t column) {
  return static_cast<const char*>(view.data) +
         (row * view.row_stride + column) * int64_t(size_of(view.dtype));
}

}  // namespace

template <class T>
void add(ConstTensorView x, TensorView y) {
  for_each_piece(Pieces(x.packed() && y.packed(), y.dims),
                 [&](int64_t row, int64_t begin, int64_t count) {
                   const T* const from = x.row<T>(row) + begin;
                   T* const to = y.row<T>(row) + begin;
                   for (int64_t i = 0; i < count; ++i) to[i] += from[i];
                 });
}

template <class T>
void scale(T factor, TensorView y) {
  for_each_piece(Pieces(y.packed(), y.dims), [&](int64_t row, int64_t begin, int64_t count) {
    T* const to = y.row<T>(row) + begin;
    for (int64_t i = 0; i < count; ++i) to[i] *= factor;
  });
}

template <class T>
void tree_sum(ConstTensorView x, TensorView y) {
  constexpr int64_t kBlock = 2048;  // of columns: the stack of sums stays in L1 and L2
  const int64_t leaves = x.dims[0], columns = x.dims[1];
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < columns; begin += kBlock) {
    const int64_t count = std::min(kBlock, columns - begin);
    std::vector<T> stack(std::bit_width(uint64_t(leaves)) * kBlock);
    for (int64_t index = 0; index < leaves; ++index) {
      const HalvingLeaf leaf = halving_leaf(index, leaves);
      T* top = stack.data() + leaf.depth * kBlock;
      std::copy_n(x.row<T>(index) + begin, count, top);
      for (int merge = 0; merge < leaf.merges; ++merge, top -= kBlock) {
        for (int64_t i = 0; i < count; ++i) top[i - kBlock] += top[i];
      }
    }
    std::copy_n(stack.data(), count, y.as<T>() + begin);
  }
}

template <class T>
void sum_rows(ConstTensorView x, TensorView total, TensorView partial) {
  const RowBlocks blocks(x.rows());
  const int64_t columns = x.row_size();
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks.count; ++block) {
    T* const sum = partial.row<T>(block);
    std::fill_n(sum, columns, T(0));
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const T* const from = x.row<T>(row);
      for (int64_t i = 0; i < columns; ++i) sum[i] += from[i];
    }
  }
  T* const to = total.as<T>();
  for (int64_t block = 0; block < blocks.count; ++block) {
    const T* const sum = partial.row<T>(block);
    for (int64_t i = 0; i < columns; ++i) to[i] += sum[i];
  }
}

void copy(ConstTensorView x, TensorView y) {
  for_each_piece(
      Pieces(x.packed() && y.packed(), y.dims), [&](int64_t row, int64_t begin, int64_t count) {
        std::memcpy(bytes_at(y, row, begin), bytes_at(x, row, begin), count * size_of(y.dtype));
      });
}

namespace {

template <class Body>
void dispatch_storage(DType dtype, const Body& body) {
  if (dtype == DType::bf16) return body.template operator()<bf16>();
  dispatch_float(dtype, body);
}

// Through f32 where one side is narrower than f64.
template <class From, class To>
To converted(From value) {
  if constexpr (std::is_same_v<From, To>) return value;
  return To(float(value));
}

}  // namespace

void convert(ConstTensorView x, TensorView y) {
  dispatch_storage(x.dtype, [&]<class From>() {
    dispatch_storage(y.dtype, [&]<class To>() {
      for_each_piece(Pieces(x.packed() && y.packed(), y.dims),
                     [&](int64_t row, int64_t begin, int64_t count) {
                       const From* const from = x.row<From>(row) + begin;
                       To* const to = y.row<To>(row) + begin;
                       for (int64_t i = 0; i < count; ++i) to[i] = converted<From, To>(from[i]);
                     });
    });
  });
}

void zero(TensorView y) {
  for_each_piece(Pieces(y.packed(), y.dims), [&](int64_t row, int64_t begin, int64_t count) {
    std::memset(bytes_at(y, row, begin), 0, count * size_of(y.dtype));
  });
}

template void add<float>(ConstTensorView, TensorView);
template void add<double>(ConstTensorView, TensorView);
template void scale<float>(float, TensorView);
template void scale<double>(double, TensorView);
template void tree_sum<float>(ConstTensorView, TensorView);
template void tree_sum<double>(ConstTensorView, TensorView);
template void sum_rows<float>(ConstTensorView, TensorView, TensorView);
template void sum_rows<double>(ConstTensorView, TensorView, TensorView);

}  // namespace sluice::cpu
