// TensorView: a pointer with a shape. It owns nothing, is trivially copyable, and has no operators:
// whoever wants another layout calls an operator that one can see.
//
// Memory is row-major. The leading min(rank - 1, 2) dims are the *row dims*: (B, T) of an
// activation, (experts, rows) of expert weights. Rows may lie inside a wider matrix, `row_stride`
// elements apart; the inner dims of a row are packed. So the slices z, x, B, C, dt of one
// projection are read and written in place, and nothing else about strides needs to be known.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "kernels/core/device.h"
#include "kernels/core/dtype.h"

namespace sluice {

inline constexpr int kMaxRank = 5;

struct Dims {
  std::array<int64_t, kMaxRank> size{};
  int rank = 0;

  Dims() = default;
  Dims(std::initializer_list<int64_t> sizes) {
    SLUICE_CHECK(sizes.size() <= kMaxRank, "a tensor has at most ", kMaxRank, " dims, got ",
                 sizes.size());
    for (const int64_t dim : sizes) size[rank++] = dim;
  }

  int64_t operator[](int dim) const { return size[dim]; }
  int64_t numel() const {
    int64_t product = 1;
    for (int dim = 0; dim < rank; ++dim) product *= size[dim];
    return product;
  }
  int num_row_dims() const { return rank <= 1 ? 0 : (rank == 2 ? 1 : 2); }
  int64_t rows() const {
    int64_t product = 1;
    for (int dim = 0; dim < num_row_dims(); ++dim) product *= size[dim];
    return product;
  }
  int64_t row_size() const {
    int64_t product = 1;
    for (int dim = num_row_dims(); dim < rank; ++dim) product *= size[dim];
    return product;
  }
  friend bool operator==(const Dims& a, const Dims& b) {
    return a.rank == b.rank && a.size == b.size;
  }
};

std::string to_string(const Dims& dims);  // "(2, 16, 64)"

template <class Void>  // void, or const void for a read-only view
struct BasicTensorView {
  template <class T>
  using Pointer = std::conditional_t<std::is_const_v<Void>, const T*, T*>;

  Void* data = nullptr;
  Dims dims;
  int64_t row_stride = 0;  // elements from one row to the next
  DType dtype = DType::f32;
  Device device = kCpu;

  BasicTensorView() = default;
  BasicTensorView(Void* data, const Dims& dims, DType dtype, Device device = kCpu)
      : data(data), dims(dims), row_stride(dims.row_size()), dtype(dtype), device(device) {}
  template <class T>
  requires(!std::is_void_v<T>) BasicTensorView(T* data, const Dims& dims, Device device = kCpu)
      : BasicTensorView(data, dims, dtype_of<std::remove_const_t<T>>, device) {}

  // A mutable view is a read-only view, never the other way round.
  operator BasicTensorView<const void>() const {
    BasicTensorView<const void> view;
    view.data = data;
    view.dims = dims;
    view.row_stride = row_stride;
    view.dtype = dtype;
    view.device = device;
    return view;
  }

  // An optional argument that was not given has no dims. (Views in counting mode have dims, no
  // data.)
  explicit operator bool() const { return dims.rank > 0; }

  int64_t dim(int index) const { return dims[index]; }
  int64_t rows() const { return dims.rows(); }
  int64_t row_size() const { return dims.row_size(); }
  int64_t numel() const { return dims.numel(); }
  bool packed() const { return rows() <= 1 || row_stride == row_size(); }

  // The typed pointer to the first element. Throws if T is not the dtype.
  template <class T>
  Pointer<T> as() const {
    SLUICE_CHECK(dtype == dtype_of<T>, "the tensor is ", name_of(dtype), ", read as ",
                 name_of(dtype_of<T>));
    return static_cast<Pointer<T>>(data);
  }
  template <class T>
  Pointer<T> row(int64_t index) const {
    return as<T>() + index * row_stride;
  }

  // The dims, after a check of their number: auto [B, T, D] = x.shape<3>("x: (B, T, D)");
  template <int kRank>
  std::array<int64_t, kRank> shape(const char* what) const {
    SLUICE_CHECK(dims.rank == kRank, what, " has ", kRank, " dims, got ", to_string(dims));
    std::array<int64_t, kRank> sizes{};
    for (int dim = 0; dim < kRank; ++dim) sizes[dim] = dims[dim];
    return sizes;
  }

  // Columns [begin, begin + row_size of inner) of every row; `inner` are the dims of the new row:
  // zxbcdt.columns(E, {H, P}) is x as (B, T, H, P).
  BasicTensorView columns(int64_t begin, std::initializer_list<int64_t> inner) const {
    BasicTensorView view = *this;
    view.data = offset(begin);
    view.dims = Dims{};
    for (int dim = 0; dim < dims.num_row_dims(); ++dim)
      view.dims.size[view.dims.rank++] = dims[dim];
    for (const int64_t dim : inner) view.dims.size[view.dims.rank++] = dim;
    SLUICE_CHECK(view.dims.num_row_dims() == dims.num_row_dims(),
                 "columns() keeps the row dims of ", to_string(dims));
    SLUICE_CHECK(begin >= 0 && begin + view.row_size() <= row_size(), "columns [", begin, ", ",
                 begin + view.row_size(), ") of a row of ", row_size());
    return view;
  }

  // Rows [begin, begin + count) of a matrix (rank 2).
  BasicTensorView row_range(int64_t begin, int64_t count) const {
    SLUICE_CHECK(dims.rank == 2 && begin >= 0 && begin + count <= dims[0], "rows [", begin, ", ",
                 begin + count, ") of ", to_string(dims));
    BasicTensorView view = *this;
    view.data = offset(begin * row_stride);
    view.dims.size[0] = count;
    return view;
  }

  // Index `index` of the leading dim, which is dropped: an expert's matrix, a row of the batch.
  // Only (rows, columns) of a rank-3 tensor may stay strided; other ranks must be packed.
  BasicTensorView slice(int64_t index) const {
    SLUICE_CHECK(dims.rank >= 2 && index >= 0 && index < dims[0], "slice ", index, " of ",
                 to_string(dims));
    SLUICE_CHECK(dims.rank <= 3 || packed(), "slice() of rank ", dims.rank, " needs packed rows");
    BasicTensorView view = *this;
    view.dims = Dims{};
    for (int dim = 1; dim < dims.rank; ++dim) view.dims.size[view.dims.rank++] = dims[dim];
    if (dims.rank != 3) view.row_stride = view.row_size();
    view.data = offset(index * (rows() / dims[0]) * row_stride);
    return view;
  }

  // The rows as a matrix: (B, T, ...) becomes (B * T, ...) flattened to two dims.
  BasicTensorView matrix() const {
    BasicTensorView view = *this;
    view.dims = Dims{rows(), row_size()};
    return view;
  }

  // Another shape of the same packed elements.
  BasicTensorView reshape(const Dims& shape) const {
    SLUICE_CHECK(packed() && shape.numel() == numel(), "cannot view ", to_string(dims), " as ",
                 to_string(shape));
    BasicTensorView view = *this;
    view.dims = shape;
    view.row_stride = shape.row_size();
    return view;
  }

 private:
  Void* offset(int64_t elements) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
    return data == nullptr ? nullptr
                           : static_cast<Byte*>(data) + elements * int64_t(size_of(dtype));
  }
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

// Throws unless the view has exactly these dims, this dtype and a device equal to `device`.
void expect(const char* name, const ConstTensorView& view, const Dims& dims, DType dtype,
            Device device);

}  // namespace sluice
