// One operator on the CPU in f64 and on the GPU in f32 and bf16, from the same inputs. A test is
// written once, over a Side:
//
//   TEST(RmsNormGpu, AgreesWithCpu) {
//     check_on_gpu([](Side& side) {
//       const TensorView x = side.normal({2, 7, 96});
//       rms_norm_forward(side.ctx(), {.x = x, .y = side.output("y", x.dims, side.dtype())});
//     });
//   }
//
// Activations hold values that the GPU's dtype can hold exactly, so that both sides begin with the
// same numbers. Whatever is not written holds NaN: outputs, scratch, and the padding of rows.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/device_memory.h"
#include "tests/support/tolerance.h"

namespace sluice::test {

// What check_one_dtype is thrown by a test with inputs and outputs of more elements than
// SLUICE_MAX_TEST_ELEMENTS, and skips: under tools that slow a GPU down a hundred times
// (tests/sanitize_gpu) only small shapes run, and those that are the least of their kind.
struct TooLarge {};

inline int64_t max_test_elements() {
  const char* const text = std::getenv("SLUICE_MAX_TEST_ELEMENTS");
  return text == nullptr ? std::numeric_limits<int64_t>::max() : std::atoll(text);
}

class Side {
 public:
  // `inputs`: the dtype whose values activations have. `seed` makes other inputs.
  Side(Device device, DType dtype, DType inputs, uint64_t seed, size_t arena_bytes)
      : device_(device),
        dtype_(dtype),
        inputs_(inputs),
        seed_(seed),
        stream_(make_stream(device)),
        saved_("saved", arena_bytes, device),
        scratch_("scratch", arena_bytes, device) {
    context_ = {
        .device = device, .stream = stream_, .saved = &saved_, .scratch = &scratch_, .rng = {}};
    for (Arena* arena : {&saved_, &scratch_}) {
      const Arena::Mark mark = arena->mark();
      poison(arena->alloc({int64_t(arena_bytes)}, DType::u8));
      arena->release(mark);
    }
  }
  ~Side() { destroy_stream(stream_); }
  Side(const Side&) = delete;
  Side& operator=(const Side&) = delete;

  void limit(int64_t elements) { max_elements_ = elements; }
  const Context& ctx() const { return context_; }
  DType dtype() const { return dtype_; }             // of activations and matrices
  DType stat() const { return stat_dtype(dtype_); }  // of statistics, states, vectors

  // mean + spread * standard normal: an activation, or of the statistics' dtype.
  TensorView normal(const Dims& dims, double spread = 1, double mean = 0, int64_t padding = 0) {
    return fill(dims, dtype_, inputs_, spread, mean, padding);
  }
  TensorView stat_normal(const Dims& dims, double spread = 1, double mean = 0,
                         int64_t padding = 0) {
    return fill(dims, stat(), DType::f32, spread, mean, padding);
  }
  // Given values; integers are i32 or i64.
  TensorView values(const Dims& dims, DType dtype, const std::vector<double>& all) {
    const TensorView view = allocate(dims, dtype, 0);
    upload(view, all);
    return view;
  }
  // Document starts, as tests/support/tensors.h has them: a (B, T) i32 tensor on the host.
  TensorView copy_of(const ConstTensorView& host) {
    const TensorView view = allocate(host.dims, host.dtype, 0);
    copy_bytes(view.data, device_, host.data, kCpu, host.numel() * size_of(host.dtype), stream_);
    return view;
  }

  // NaN.
  TensorView nothing(const Dims& dims, DType dtype) { return allocate(dims, dtype, 0); }
  // Compared, and for floating types poisoned before.
  TensorView output(const std::string& name, const Dims& dims, DType dtype, int64_t padding = 0) {
    const TensorView view = allocate(dims, dtype, padding);
    compare(name, view);
    return view;
  }
  // What is accumulated into, or updated in place, is an input that is compared too.
  TensorView compare(const std::string& name, const TensorView& view) {
    outputs_.push_back({name, view});
    return view;
  }

  struct Output {
    std::string name;
    TensorView view;
  };
  const std::vector<Output>& outputs() const { return outputs_; }

  // Row by row, without padding.
  std::vector<double> download(const TensorView& view) const {
    const std::vector<char> bytes = download_bytes(view);
    std::vector<double> all(view.numel());
    for (int64_t i = 0; i < view.numel(); ++i)
      all[i] = element(bytes.data(), view.dtype, address(view, i));
    return all;
  }
  // Of the elements, for comparison bit by bit.
  std::vector<char> download_elements(const TensorView& view) const {
    const std::vector<char> bytes = download_bytes(view);
    const size_t width = size_of(view.dtype);
    std::vector<char> all(view.numel() * width);
    for (int64_t i = 0; i < view.numel(); ++i)
      std::copy_n(&bytes[address(view, i) * width], width, &all[i * width]);
    return all;
  }

 private:
  static int64_t address(const TensorView& view, int64_t index) {
    return index / view.row_size() * view.row_stride + index % view.row_size();
  }
  static size_t bytes_of(const TensorView& view) {
    return std::max<int64_t>(1, view.rows()) * view.row_stride * size_of(view.dtype);
  }
  static double element(const char* bytes, DType dtype, int64_t at) {
    switch (dtype) {
      case DType::f64:
        return reinterpret_cast<const double*>(bytes)[at];
      case DType::f32:
        return reinterpret_cast<const float*>(bytes)[at];
      case DType::bf16:
        return float(reinterpret_cast<const bf16*>(bytes)[at]);
      case DType::i64:
        return double(reinterpret_cast<const int64_t*>(bytes)[at]);
      case DType::i32:
        return reinterpret_cast<const int32_t*>(bytes)[at];
      default:
        throw Error(ExitCode::bug, concat("tests do not read ", name_of(dtype)));
    }
  }
  static void set_element(char* bytes, DType dtype, int64_t at, double value) {
    switch (dtype) {
      case DType::f64:
        reinterpret_cast<double*>(bytes)[at] = value;
        return;
      case DType::f32:
        reinterpret_cast<float*>(bytes)[at] = float(value);
        return;
      case DType::bf16:
        reinterpret_cast<bf16*>(bytes)[at] = bf16(float(value));
        return;
      case DType::i64:
        reinterpret_cast<int64_t*>(bytes)[at] = int64_t(value);
        return;
      case DType::i32:
        reinterpret_cast<int32_t*>(bytes)[at] = int32_t(value);
        return;
      default:
        throw Error(ExitCode::bug, concat("tests do not write ", name_of(dtype)));
    }
  }

  TensorView allocate(const Dims& dims, DType dtype, int64_t padding) {
    const int64_t stride = dims.row_size() + padding;
    const int64_t rows = std::max<int64_t>(1, dims.rows());
    elements_ += rows * stride;
    if (elements_ > max_elements_) throw TooLarge();
    buffers_.emplace_back(rows * stride * size_of(dtype), device_);
    TensorView view(buffers_.back().data(), dims, dtype, device_);
    view.row_stride = stride;
    poison(view);
    return view;
  }
  // All bits set: NaN in every floating type, -1 in integers.
  void poison(const TensorView& view) {
    const std::vector<char> ones(bytes_of(view), char(0xff));
    copy_bytes(view.data, device_, ones.data(), kCpu, ones.size(), stream_);
    stream_.sync();
  }
  TensorView fill(const Dims& dims, DType dtype, DType rounded_to, double spread, double mean,
                  int64_t padding) {
    std::vector<double> all(dims.numel());
    const RngKey key{.seed = seed_, .stream = ++num_inputs_};
    for (int64_t i = 0; i < dims.numel(); ++i) {
      const float value = float(mean + spread * random_normal(key, i));
      all[i] = rounded_to == DType::bf16 ? float(bf16(value)) : value;
    }
    const TensorView view = allocate(dims, dtype, padding);
    upload(view, all);
    return view;
  }
  void upload(const TensorView& view, const std::vector<double>& all) {
    std::vector<char> bytes(bytes_of(view), char(0xff));
    for (int64_t i = 0; i < view.numel(); ++i)
      set_element(bytes.data(), view.dtype, address(view, i), all[i]);
    copy_bytes(view.data, device_, bytes.data(), kCpu, bytes.size(), stream_);
    stream_.sync();
  }
  std::vector<char> download_bytes(const TensorView& view) const {
    std::vector<char> bytes(bytes_of(view));
    copy_bytes(bytes.data(), kCpu, view.data, device_, bytes.size(), stream_);
    stream_.sync();
    return bytes;
  }

  Device device_;
  DType dtype_, inputs_;
  uint64_t seed_;
  uint64_t num_inputs_ = 0;
  int64_t elements_ = 0, max_elements_ = std::numeric_limits<int64_t>::max();
  Stream stream_;
  Arena saved_, scratch_;
  Context context_;
  std::vector<Buffer> buffers_;
  std::vector<Output> outputs_;
};

// Relative errors by norm that are let through, and what a test is.
struct GpuBounds {
  double f32 = 1e-5;
  double bf16 = 1e-2;
  size_t arena_bytes = size_t{16} << 20;
  bool in_f32 = true;  // else in bf16 alone: f32 has no kernel of its own here, but more work
  bool least = false;  // as little work as a kernel can have: at any number of elements
  // Nothing is rounded before a bf16 output is: the error is that of the rounding, kMostBf16Error
  // times at most. (Of operators that round between products: tests/support/bf16_error.h.)
  bool rounds_once = false;
};

inline double error_by_norm(const std::vector<double>& got, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference) / std::max(std::sqrt(norm), 1e-30);
}

inline double error_of_rounding(const std::vector<double>& exact) {
  std::vector<double> rounded;
  for (const double value : exact) rounded.push_back(float(bf16(float(value))));
  return error_by_norm(rounded, exact);
}

inline void check_one_dtype(const std::function<void(Side&)>& body, DType dtype,
                            const GpuBounds& bounds) {
  const double bound = dtype == DType::f32 ? bounds.f32 : bounds.bf16;
  const size_t arena_bytes = bounds.arena_bytes;
  const Device gpu{Device::Kind::cuda, 0};
  const uint64_t seed = uint64_t(testing::UnitTest::GetInstance()->random_seed());
  Side expected(kCpu, DType::f64, dtype, seed, 2 * arena_bytes);
  Side got(gpu, dtype, dtype, seed, arena_bytes), again(gpu, dtype, dtype, seed, arena_bytes);
  try {
    for (Side* side : {&expected, &got, &again}) {
      if (!bounds.least) side->limit(max_test_elements());
      body(*side);
    }
  } catch (const TooLarge&) {
    GTEST_SKIP() << "too large";
  }
  for (size_t i = 0; i < got.outputs().size(); ++i) {
    SCOPED_TRACE(concat(got.outputs()[i].name, " in ", name_of(dtype), ", inputs of seed ", seed));
    const TensorView& output = got.outputs()[i].view;
    const bool floating = output.dtype != DType::i32 && output.dtype != DType::i64;
    const std::vector<double> exact = expected.download(expected.outputs()[i].view);
    const double error = error_by_norm(got.download(output), exact);
    EXPECT_LE(error, floating ? bound : 0);
    if (bounds.rounds_once && output.dtype == DType::bf16) {
      EXPECT_LE(error, kMostBf16Error * error_of_rounding(exact));
    }
    EXPECT_TRUE(got.download_elements(output) == again.download_elements(again.outputs()[i].view))
        << "a rerun has other bits";
  }
}

// Skips where there is no GPU.
inline void check_on_gpu(const std::function<void(Side&)>& body, const GpuBounds& bounds = {}) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  if (bounds.in_f32) check_one_dtype(body, DType::f32, bounds);
  check_one_dtype(body, DType::bf16, bounds);
}

}  // namespace sluice::test
