// Tensors that own their memory, random values, and contexts for tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/dispatch.h"

namespace sluice::test {

// A tensor for tests. Fresh ones hold NaN (integers: the lowest value), so that whatever an
// operator forgets to write is seen.
class Tensor {
 public:
  Tensor() = default;
  Tensor(const Dims& dims, DType dtype, int64_t row_padding = 0) {
    const int64_t stride = dims.row_size() + row_padding;
    buffer_ = Buffer(dims.rows() * stride * size_of(dtype), kCpu);
    view_ = TensorView(buffer_.data(), dims, dtype);
    view_.row_stride = stride;
    poison();
  }
  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = default;

  operator TensorView() const { return view_; }
  operator ConstTensorView() const { return view_; }
  const TensorView& view() const { return view_; }
  int64_t numel() const { return view_.numel(); }
  DType dtype() const { return view_.dtype; }
  const Dims& dims() const { return view_.dims; }

  // Element by flat logical index, as double.
  double get(int64_t index) const {
    const int64_t at = address(index);
    switch (view_.dtype) {
      case DType::f64:
        return view_.as<double>()[at];
      case DType::f32:
        return view_.as<float>()[at];
      case DType::i64:
        return double(view_.as<int64_t>()[at]);
      case DType::i32:
        return view_.as<int32_t>()[at];
      default:
        throw Error(ExitCode::bug, "tests read f64, f32, i64 and i32");
    }
  }
  void set(int64_t index, double value) {
    const int64_t at = address(index);
    switch (view_.dtype) {
      case DType::f64:
        view_.as<double>()[at] = value;
        return;
      case DType::f32:
        view_.as<float>()[at] = float(value);
        return;
      case DType::i64:
        view_.as<int64_t>()[at] = int64_t(value);
        return;
      case DType::i32:
        view_.as<int32_t>()[at] = int32_t(value);
        return;
      default:
        throw Error(ExitCode::bug, "tests write f64, f32, i64 and i32");
    }
  }
  Tensor& fill(double value) {
    for (int64_t i = 0; i < numel(); ++i) set(i, value);
    return *this;
  }
  Tensor& poison() {
    const bool floating = view_.dtype == DType::f64 || view_.dtype == DType::f32;
    return fill(floating ? std::numeric_limits<double>::quiet_NaN() : -2147483648.0);
  }
  // mean + spread * standard normal, by index: the same values in f32 and f64 up to rounding.
  Tensor& fill_normal(uint64_t seed, double spread = 1, double mean = 0) {
    for (int64_t i = 0; i < numel(); ++i) {
      set(i, mean + spread * random_normal({.seed = 0x51u, .stream = seed}, i));
    }
    return *this;
  }
  Tensor& fill_below(uint64_t seed, int64_t bound) {
    for (int64_t i = 0; i < numel(); ++i) {
      set(i, double(random_below({.seed = 0x52u, .stream = seed}, i, bound)));
    }
    return *this;
  }
  Tensor& fill(const std::vector<double>& values) {
    SLUICE_CHECK(int64_t(values.size()) == numel(), "fill with ", numel(), " values, got ",
                 values.size());
    for (int64_t i = 0; i < numel(); ++i) set(i, values[i]);
    return *this;
  }
  std::vector<double> values() const {
    std::vector<double> all(numel());
    for (int64_t i = 0; i < numel(); ++i) all[i] = get(i);
    return all;
  }
  Tensor clone() const {
    Tensor copy(view_.dims, view_.dtype, view_.row_stride - view_.row_size());
    for (int64_t i = 0; i < numel(); ++i) copy.set(i, get(i));
    return copy;
  }

 private:
  int64_t address(int64_t index) const {
    return index / view_.row_size() * view_.row_stride + index % view_.row_size();
  }
  Buffer buffer_;
  TensorView view_;
};

inline Tensor zeros(const Dims& dims, DType dtype) {
  Tensor tensor(dims, dtype);
  tensor.fill(0);
  return tensor;
}
inline Tensor normal(const Dims& dims, DType dtype, uint64_t seed, double spread = 1,
                     double mean = 0) {
  Tensor tensor(dims, dtype);
  tensor.fill_normal(seed, spread, mean);
  return tensor;
}

inline Tensor copy_of(const ConstTensorView& view) {
  Tensor copy(view.dims, view.dtype);
  for (int64_t row = 0; row < view.rows(); ++row) {
    dispatch_float(view.dtype, [&]<class T>() {
      std::copy_n(view.row<T>(row), view.row_size(), copy.view().row<T>(row));
    });
  }
  return copy;
}

// (B, T) i32 document starts; `starts[b]` lists the tokens of row b where a document begins. The
// first document of a row begins at `first` (negative: before this shard).
inline Tensor documents(int64_t B, int64_t T, const std::vector<std::vector<int64_t>>& starts = {},
                        int64_t first = 0) {
  Tensor doc_begin({B, T}, DType::i32);
  for (int64_t b = 0; b < B; ++b) {
    int64_t begin = first;
    for (int64_t t = 0; t < T; ++t) {
      if (b < int64_t(starts.size())) {
        for (const int64_t start : starts[b]) begin = start == t ? t : begin;
      }
      doc_begin.set(b * T + t, double(begin));
    }
  }
  return doc_begin;
}

// |a - b| / |b| by norm; NaN anywhere gives NaN, which no tolerance admits.
inline double relative_error(const Tensor& a, const Tensor& b) {
  SLUICE_CHECK(a.dims() == b.dims(), "comparing ", to_string(a.dims()), " with ",
               to_string(b.dims()));
  double difference = 0;
  double norm = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    difference += (a.get(i) - b.get(i)) * (a.get(i) - b.get(i));
    norm += b.get(i) * b.get(i);
  }
  return difference == 0 ? 0 : std::sqrt(difference) / std::max(std::sqrt(norm), 1e-30);
}

inline bool bit_equal(const Tensor& a, const Tensor& b) {
  if (!(a.dims() == b.dims())) return false;
  for (int64_t i = 0; i < a.numel(); ++i) {
    if (!(a.get(i) == b.get(i))) return false;
  }
  return true;
}

// A context with arenas of its own.
class TestContext {
 public:
  explicit TestContext(size_t bytes = size_t{4} << 20)
      : saved_("saved", bytes, kCpu), scratch_("scratch", bytes, kCpu) {}
  operator const Context&() {
    context_ =
        Context{.device = kCpu, .stream = {}, .saved = &saved_, .scratch = &scratch_, .rng = {}};
    return context_;
  }
  Arena& saved() { return saved_; }
  Arena& scratch() { return scratch_; }

 private:
  Arena saved_;
  Arena scratch_;
  Context context_;
};

}  // namespace sluice::test
