// copy, gemm, xent, adamw.
#include <cblas.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cstring>

#include "kernels/adamw/adamw.h"
#include "kernels/core/host_copy.h"
#include "kernels/core/threads.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm.h"
#include "kernels/linear_xent/linear_xent.h"
#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

// Past the cache where the processor can: a plain store first reads what it overwrites, and the
// ceiling would be a third too low. Both pointers are aligned, bytes are a multiple of 16.
void copy_block(const uint8_t* x, uint8_t* y, int64_t bytes) {
#ifdef __SSE2__
  for (int64_t i = 0; i < bytes; i += 16) {
    const __m128i value = _mm_load_si128(reinterpret_cast<const __m128i*>(x + i));
    _mm_stream_si128(reinterpret_cast<__m128i*>(y + i), value);
  }
  _mm_sfence();
#else
  std::memcpy(y, x, size_t(bytes));
#endif
}

class Copy final : public Workload {
 public:
  Copy(const Target& target, int64_t bytes)
      : Workload(target),
        bytes_(bytes),
        x_(stat_uniform({bytes / int64_t(sizeof(float))})),
        y_(stat_zeros(x_.dims)) {}

  void forward(const Context& ctx) override {
    if (ctx.device.is_cuda()) return copy(ctx, x_, y_);
    if (!ctx.counting()) peer();
  }
  void peer() override {
    constexpr int64_t kBlock = int64_t{4} << 20;
    const uint8_t* const x = static_cast<const uint8_t*>(x_.data);
    uint8_t* const y = static_cast<uint8_t*>(y_.data);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < bytes_; i += kBlock) {
      copy_block(x + i, y + i, std::min(kBlock, bytes_ - i));
    }
  }

 private:
  int64_t bytes_;
  TensorView x_, y_;
};

// OpenBLAS as its users call it: the whole product at once, with all threads.
//   C = op(A) op(B) + beta C
struct Blas {
  ConstTensorView a = {}, b = {};
  TensorView c = {};
  bool transpose_a = false, transpose_b = false;
  float beta = 0;
};
void openblas(const Blas& p) {
  const int threads = num_threads();
  openblas_set_num_threads(threads);
  cblas_sgemm(CblasRowMajor, p.transpose_a ? CblasTrans : CblasNoTrans,
              p.transpose_b ? CblasTrans : CblasNoTrans, int(p.c.dim(0)), int(p.c.dim(1)),
              int(p.a.dim(p.transpose_a ? 0 : 1)), 1, p.a.as<float>(), int(p.a.row_stride),
              p.b.as<float>(), int(p.b.row_stride), p.beta, p.c.as<float>(), int(p.c.row_stride));
  set_num_threads(threads);
}

// A linear layer: y = x W^T, and both gradients.
class Linear final : public Workload {
 public:
  Linear(const Target& target, int64_t T, int64_t in, int64_t out)
      : Workload(target),
        x_(uniform({T, in})),
        weight_(uniform({out, in})),
        y_(zeros({T, out})),
        dy_(uniform({T, out})),
        dx_(zeros({T, in})),
        dweight_(stat_zeros({out, in})) {}

  void forward(const Context& ctx) override {
    gemm(ctx, {.a = x_, .b = weight_, .c = y_, .transpose_b = true});
  }
  void backward(const Context& ctx) override {
    gemm(ctx, {.a = dy_, .b = weight_, .c = dx_});
    gemm(ctx, {.a = dy_, .b = x_, .c = dweight_, .transpose_a = true, .beta = 1});
  }
  void peer() override {
    openblas({.a = x_, .b = weight_, .c = y_, .transpose_b = true});
    openblas({.a = dy_, .b = weight_, .c = dx_});
    openblas({.a = dy_, .b = x_, .c = dweight_, .transpose_a = true, .beta = 1});
  }

 private:
  TensorView x_, weight_, y_, dy_, dx_, dweight_;
};

// One product of it.
class LinearProduct final : public Workload {
 public:
  LinearProduct(const Target& target, Product product, int64_t T, int64_t in, int64_t out,
                int64_t padding)
      : Workload(target), product_(product) {
    const bool forward = product == Product::forward;
    const bool of_weight = product == Product::weight_gradient;
    x_ = product == Product::data_gradient ? zeros({T, in}) : uniform({T, in});
    weight_ = of_weight ? stat_zeros({out, in}) : uniform({out, in});
    const Dims padded{T, out + padding};
    y_ = (forward ? zeros(padded) : uniform(padded)).columns(0, {out});
  }

  void forward(const Context& ctx) override {
    switch (product_) {
      case Product::forward:
        return gemm(ctx, {.a = x_, .b = weight_, .c = y_, .transpose_b = true});
      case Product::data_gradient:
        return gemm(ctx, {.a = y_, .b = weight_, .c = x_});
      case Product::weight_gradient:
        return gemm(ctx, {.a = y_, .b = x_, .c = weight_, .transpose_a = true, .beta = 1});
    }
  }

 private:
  Product product_;
  TensorView x_, weight_, y_;  // or their gradients
};

class OpenBlas final : public Workload {
 public:
  OpenBlas(const Target& target, int64_t n)
      : Workload(target), x_(uniform({n, n})), weight_(uniform({n, n})), y_(zeros({n, n})) {}
  void forward(const Context& ctx) override {
    if (!ctx.counting()) peer();
  }
  void peer() override { openblas({.a = x_, .b = weight_, .c = y_, .transpose_b = true}); }

 private:
  TensorView x_, weight_, y_;
};

class Xent final : public Workload {
 public:
  Xent(const Target& target, int64_t T, int64_t D, int64_t V)
      : Workload(target),
        hidden_(uniform({1, T, D})),
        weight_(uniform({V, D}, 0.05)),
        targets_(zeros({1, T}, DType::i32)),
        losses_(stat_zeros({1, T})),
        loss_sum_(zeros({1}, DType::f64)),
        dhidden_(zeros({1, T, D})),
        dweight_(stat_zeros({V, D})) {
    if (target.device.is_cpu()) peer_logits_ = zeros({T, V});
  }

  void forward(const Context& ctx) override {
    linear_xent_forward(ctx, {.hidden = hidden_,
                              .weight = weight_,
                              .targets = targets_,
                              .losses = losses_,
                              .loss_sum = loss_sum_});
  }
  void forward_backward(const Context& ctx) override {
    linear_xent_forward_backward(ctx, {.hidden = hidden_,
                                       .weight = weight_,
                                       .targets = targets_,
                                       .losses = losses_,
                                       .loss_sum = loss_sum_,
                                       .dhidden = dhidden_,
                                       .dweight = dweight_});
  }
  // The products alone.
  void peer() override {
    openblas({.a = hidden_.matrix(), .b = weight_, .c = peer_logits_, .transpose_b = true});
    openblas({.a = peer_logits_, .b = weight_, .c = dhidden_.matrix()});
    openblas(
        {.a = peer_logits_, .b = hidden_.matrix(), .c = dweight_, .transpose_a = true, .beta = 1});
  }

 private:
  TensorView hidden_, weight_, targets_, losses_, loss_sum_, dhidden_, dweight_, peer_logits_;
};

// Values, gradients and moments are f32; a model in bf16 has a rounded copy of the values.
class Adam final : public Workload {
 public:
  Adam(const Target& target, int64_t n)
      : Workload(target),
        value_(stat_uniform({n})),
        grad_(stat_uniform({n})),
        m_(stat_zeros({n})),
        v_(stat_zeros({n})),
        scalars_(zeros({kNumUpdateScalars}, DType::f64)),
        spans_(zeros({1, kNumSpanColumns}, DType::f64)) {
    if (target.dtype == DType::bf16) rounded_ = zeros({n});
    const auto set = [&](const TensorView& view, const std::vector<double>& values) {
      const HostCopy host(view, target.stream, HostCopy::Content::unread);
      std::copy(values.begin(), values.end(), host.view().as<double>());
      host.write_back();
    };
    set(scalars_, {1e-3, 0.1, 0.05, 1, 1});
    set(spans_, {0, double(n), 0.1, 1});
  }
  void forward(const Context& ctx) override {
    adamw(ctx, {.value = value_,
                .rounded = rounded_,
                .grad = grad_,
                .exp_avg = m_,
                .exp_avg_sq = v_,
                .scalars = scalars_,
                .spans = spans_});
  }

 private:
  TensorView value_, rounded_, grad_, m_, v_, scalars_, spans_;
};

double linear_flops(int64_t T, int64_t in, int64_t out) {
  return 2.0 * double(T) * double(in) * double(out);
}

}  // namespace

Case copy_case(const Target& target, int64_t bytes) {
  return {.shape = {{"bytes", bytes}},
          .passes = Passes::forward,
          .forward = {.bytes = 2.0 * double(bytes)},
          .make = [=] { return std::make_unique<Copy>(target, bytes); }};
}

Case linear_case(const Target& target, int64_t T, int64_t in, int64_t out) {
  const double flops = linear_flops(T, in, out);
  return {.shape = {{"T", T}, {"in", in}, {"out", out}},
          .forward = {.flops = flops},
          .backward = {.flops = 2 * flops},
          .has_peer = true,
          .make = [=] { return std::make_unique<Linear>(target, T, in, out); }};
}

Case product_case(const Target& target, Product product, int64_t T, int64_t in, int64_t out,
                  int64_t padding) {
  constexpr const char* kNames[] = {"forward", "dgrad", "wgrad"};
  return {.part = kNames[int(product)],
          .shape = {{"T", T}, {"in", in}, {"out", out}},
          .passes = Passes::forward,
          .forward = {.flops = linear_flops(T, in, out)},
          .make = [=] {
            return std::make_unique<LinearProduct>(target, product, T, in, out, padding);
          }};
}

Case openblas_case(const Target& target, int64_t n) {
  return {.shape = {{"T", n}, {"in", n}, {"out", n}},
          .passes = Passes::forward,
          .forward = {.flops = linear_flops(n, n, n)},
          .make = [=] { return std::make_unique<OpenBlas>(target, n); }};
}

Case xent_case(const Target& target, int64_t T, int64_t D, int64_t V) {
  const double flops = linear_flops(T, D, V);
  return {.shape = {{"B", 1}, {"T", T}, {"D", D}, {"V", V}},
          .passes = Passes::forward_and_fused,
          .forward = {.flops = flops},
          .backward = {.flops = 2 * flops},
          .has_peer = target.device.is_cpu(),
          .make = [=] { return std::make_unique<Xent>(target, T, D, V); }};
}

// Reads the gradient, reads and writes the value and both moments, writes the rounded copy.
Case adamw_case(const Target& target, int64_t n) {
  const double rounded = target.dtype == DType::bf16 ? target.width() : 0;
  return {.shape = {{"n", n}},
          .passes = Passes::forward,
          .forward = {.bytes = (7 * kFloat + rounded) * double(n)},
          .make = [=] { return std::make_unique<Adam>(target, n); }};
}

}  // namespace sluice::bench
