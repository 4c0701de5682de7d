#include "kernels/core/halving_tree.h"
#include "kernels/core/packs.h"
#include "kernels/core/row_blocks.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/elementwise/elementwise_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 132 * 8;

// Rows of a matrix of which one or both sides may be strided.
struct Matrix {
  int64_t rows, columns;
};

// A tensor whose sides are all packed is one long row.
Matrix matrix_of(const TensorView& y, bool packed) {
  return packed ? Matrix{1, y.numel()} : Matrix{y.rows(), y.row_size()};
}

// body(row, column) for every element.
template <class Body>
__global__ void for_each_kernel(Matrix matrix, Body body) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < matrix.rows * matrix.columns;
       i += step) {
    const int64_t row = matrix.rows == 1 ? 0 : i / matrix.columns;
    body(row, i - row * matrix.columns);
  }
}

template <class Body>
void for_each(const Context& ctx, const char* name, const Matrix& matrix, Body body) {
  const int64_t blocks = ceil_div(matrix.rows * matrix.columns, kThreads);
  launch(ctx, name, {.blocks = unsigned(std::min(blocks, kMaxBlocks)), .threads = kThreads},
         for_each_kernel<Body>, matrix, body);
}

template <class T>
struct Add {
  const T* x;
  T* y;
  int64_t x_stride, y_stride;
  __device__ void operator()(int64_t row, int64_t column) const {
    T& to = y[row * y_stride + column];
    to = from_float<T>(to_float(to) + to_float(x[row * x_stride + column]));
  }
};

// Of packed tensors, 16 bytes at a time.
template <class T>
struct AddPacks {
  const T* x;
  T* y;
  __device__ void operator()(int64_t, int64_t pack) const {
    const int64_t at = pack * Pack<T>::kWidth;
    const Pack<T> from = Pack<T>::load(x + at);
    Pack<T> to = Pack<T>::load(y + at);
#pragma unroll
    for (int i = 0; i < Pack<T>::kWidth; ++i)
      to.values[i] = from_float<T>(to_float(to.values[i]) + to_float(from.values[i]));
    to.store(y + at);
  }
};

template <class From, class To>
struct Convert {
  const From* x;
  To* y;
  int64_t x_stride, y_stride;
  __device__ void operator()(int64_t row, int64_t column) const {
    y[row * y_stride + column] = from_float<To>(to_float(x[row * x_stride + column]));
  }
};

template <class T>
struct Scale {
  T* y;
  int64_t stride;
  float factor;
  __device__ void operator()(int64_t row, int64_t column) const {
    T& to = y[row * stride + column];
    to = from_float<T>(to_float(to) * factor);
  }
};

// As many neighbouring elements of a row as one load takes.
template <int kWidth>
struct alignas(kWidth * sizeof(float)) Lane {
  float values[kWidth];

  __device__ static Lane load(const float* from) { return *reinterpret_cast<const Lane*>(from); }
  __device__ void operator+=(const Lane& other) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] += other.values[i];
  }
};

// Rows [lo, hi), with all loads under way at once.
template <int kWidth, int lo, int hi>
__device__ Lane<kWidth> sum_halves(const float* x, int64_t stride) {
  if constexpr (hi - lo == 1) {
    return Lane<kWidth>::load(x + lo * stride);
  } else {
    constexpr int middle = int(halving_middle(lo, hi));
    Lane<kWidth> sum = sum_halves<kWidth, lo, middle>(x, stride);
    sum += sum_halves<kWidth, middle, hi>(x, stride);
    return sum;
  }
}

// The same for any number of rows, with the stack of sums in local memory.
template <int kWidth>
__device__ Lane<kWidth> sum_stacked(const float* x, int64_t stride, int64_t rows) {
  constexpr int kMaxDepth = 32;  // of more rows than there is memory
  Lane<kWidth> stack[kMaxDepth];
  for (int64_t row = 0; row < rows; ++row) {
    const HalvingLeaf leaf = halving_leaf(row, rows);
    Lane<kWidth> sum = Lane<kWidth>::load(x + row * stride);
    for (int merge = 1; merge <= leaf.merges; ++merge) {
      Lane<kWidth> left = stack[leaf.depth - merge];
      left += sum;
      sum = left;
    }
    stack[leaf.depth - leaf.merges] = sum;
  }
  return stack[0];
}

// Bound by bandwidth: rows + 1 words are moved for each column.
template <int kWidth, int kRows>  // 0: any number
__global__ void __launch_bounds__(kThreads)
    tree_sum_kernel(const float* x, int64_t stride, int64_t rows, int64_t columns, float* y) {
  const int64_t step = int64_t(gridDim.x) * kThreads * kWidth;
  for (int64_t column = (blockIdx.x * int64_t(kThreads) + threadIdx.x) * kWidth; column < columns;
       column += step) {
    Lane<kWidth> sum;
    if constexpr (kRows > 0) {
      sum = sum_halves<kWidth, 0, kRows>(x + column, stride);
    } else {
      sum = sum_stacked<kWidth>(x + column, stride, rows);
    }
    *reinterpret_cast<Lane<kWidth>*>(y + column) = sum;
  }
}

// A block sums kThreads columns of one range of rows.
template <class T>
__global__ void sum_row_blocks_kernel(const T* x, int64_t stride, int64_t columns, RowBlocks blocks,
                                      float* partial) {
  const int64_t column = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (column >= columns) return;
  const int64_t block = blockIdx.y;
  float sum = 0;
  for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row)
    sum += to_float(x[row * stride + column]);
  partial[block * columns + column] = sum;
}

__global__ void add_partials_kernel(const float* partial, int64_t count, int64_t columns,
                                    float* total) {
  const int64_t column = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (column >= columns) return;
  float sum = 0;
  for (int64_t block = 0; block < count; ++block) sum += partial[block * columns + column];
  total[column] += sum;
}

}  // namespace

void add(const Context& ctx, ConstTensorView x, TensorView y) {
  const bool packed = x.packed() && y.packed();
  dispatch_float(y.dtype, [&]<class T>() {
    constexpr int kWidth = Pack<T>::kWidth;
    if (packed && y.numel() % kWidth == 0 && at_pack(x.data) && at_pack(y.data)) {
      return for_each(ctx, "add", Matrix{1, y.numel() / kWidth},
                      AddPacks<T>{pointer<T>(x), pointer<T>(y)});
    }
    for_each(ctx, "add", matrix_of(y, packed),
             Add<T>{pointer<T>(x), pointer<T>(y), x.row_stride, y.row_stride});
  });
}

void convert(const Context& ctx, ConstTensorView x, TensorView y) {
  const bool packed = x.packed() && y.packed();
  dispatch_float(x.dtype, [&]<class From>() {
    dispatch_float(y.dtype, [&]<class To>() {
      for_each(ctx, "convert", matrix_of(y, packed),
               Convert<From, To>{pointer<From>(x), pointer<To>(y), x.row_stride, y.row_stride});
    });
  });
}

void copy(const Context& ctx, ConstTensorView x, TensorView y) {
  if (y.numel() == 0) return;
  const bool packed = x.packed() && y.packed();
  const Matrix matrix = matrix_of(y, packed);
  const size_t width = size_of(y.dtype);
  const size_t row_bytes = matrix.columns * width;
  CUDA_CHECK(cudaMemcpy2DAsync(y.data, packed ? row_bytes : y.row_stride * width, x.data,
                               packed ? row_bytes : x.row_stride * width, row_bytes, matrix.rows,
                               cudaMemcpyDeviceToDevice, stream_of(ctx)));
}

void zero(const Context& ctx, TensorView y) {
  if (y.numel() == 0) return;
  const Matrix matrix = matrix_of(y, y.packed());
  const size_t width = size_of(y.dtype);
  const size_t row_bytes = matrix.columns * width;
  CUDA_CHECK(cudaMemset2DAsync(y.data, y.packed() ? row_bytes : y.row_stride * width, 0, row_bytes,
                               matrix.rows, stream_of(ctx)));
}

void scale(const Context& ctx, double factor, TensorView y) {
  dispatch_float(y.dtype, [&]<class T>() {
    for_each(ctx, "scale", matrix_of(y, y.packed()),
             Scale<T>{pointer<T>(y), y.row_stride, float(factor)});
  });
}

// Four columns a thread where rows begin at 16 bytes, for as many rows as groups often have ranks.
void tree_sum(const Context& ctx, ConstTensorView x, TensorView y) {
  const int64_t rows = x.dims[0], columns = x.dims[1];
  const auto run = [&](auto* kernel, int width) {
    const int64_t blocks = ceil_div(columns, kThreads * width);
    launch(ctx, "tree_sum", {.blocks = unsigned(std::min(blocks, kMaxBlocks)), .threads = kThreads},
           kernel, x.as<float>(), x.row_stride, rows, columns, y.as<float>());
  };
  if (!in_packs(x) || !at_pack(y.data)) return run(tree_sum_kernel<1, 0>, 1);
  if (rows == 2) return run(tree_sum_kernel<4, 2>, 4);
  if (rows == 4) return run(tree_sum_kernel<4, 4>, 4);
  if (rows == 8) return run(tree_sum_kernel<4, 8>, 4);
  run(tree_sum_kernel<4, 0>, 4);
}

void sum_rows(const Context& ctx, ConstTensorView x, TensorView total, TensorView partial) {
  const int64_t columns = x.row_size();
  const RowBlocks blocks(x.rows(), kSumBlocks);
  const unsigned column_blocks = unsigned(ceil_div(columns, kThreads));
  dispatch_float(x.dtype, [&]<class T>() {
    launch(ctx, "sum_rows",
           {.blocks = {column_blocks, unsigned(blocks.count)}, .threads = kThreads},
           sum_row_blocks_kernel<T>, pointer<T>(x), x.row_stride, columns, blocks,
           partial.as<float>());
  });
  launch(ctx, "sum_rows", {.blocks = column_blocks, .threads = kThreads}, add_partials_kernel,
         partial.as<float>(), blocks.count, columns, total.as<float>());
}

}  // namespace sluice::cuda
