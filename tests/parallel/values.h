// Vectors of any dtype, for suites that run over all of them.
#pragma once

#include <cstring>
#include <vector>

#include "kernels/core/rng.h"
#include "kernels/core/tensor.h"

namespace sluice::test {

inline constexpr DType kAllDTypes[] = {DType::f64, DType::f32, DType::bf16, DType::i64,
                                       DType::i32, DType::u16, DType::u8};

template <class Body>
decltype(auto) with_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64:
      return body(double{});
    case DType::f32:
      return body(float{});
    case DType::bf16:
      return body(bf16{});
    case DType::i64:
      return body(int64_t{});
    case DType::i32:
      return body(int32_t{});
    case DType::u16:
      return body(uint16_t{});
    case DType::u8:
      return body(uint8_t{});
  }
  throw Error(ExitCode::bug, "no such dtype");
}

class Values {
 public:
  // Starts with a value that no test expects.
  Values(DType dtype, int64_t count)
      : dtype_(dtype), count_(count), bytes_(count * size_of(dtype) + 1) {
    for (int64_t i = 0; i < count; ++i) set(i, 99);
  }

  TensorView view() { return view(0, count_); }
  TensorView view(int64_t begin, int64_t end) {
    return TensorView(bytes_.data() + begin * size_of(dtype_), {end - begin}, dtype_);
  }
  int64_t count() const { return count_; }

  double get(int64_t i) const {
    return with_type(dtype_, [&](auto zero) {
      decltype(zero) value;
      std::memcpy(&value, bytes_.data() + i * sizeof value, sizeof value);
      return to_double(value);
    });
  }
  void set(int64_t i, double number) {
    with_type(dtype_, [&](auto zero) {
      const auto value = decltype(zero)(number);
      std::memcpy(bytes_.data() + i * sizeof value, &value, sizeof value);
    });
  }
  template <class Function>
  Values& fill(Function&& value_at) {
    for (int64_t i = 0; i < count_; ++i) set(i, value_at(i));
    return *this;
  }
  bool operator==(const Values& other) const { return bytes_ == other.bytes_; }

 private:
  static double to_double(bf16 value) { return float(value); }
  template <class T>
  static double to_double(T value) {
    return double(value);
  }

  DType dtype_;
  int64_t count_;
  std::vector<char> bytes_;
};

// A small whole number, exact in every dtype, also when summed over 8 ranks.
inline double small(int rank, int64_t index) {
  return double(random_below({.seed = 7, .stream = uint64_t(rank)}, uint64_t(index), 13));
}

}  // namespace sluice::test
