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
