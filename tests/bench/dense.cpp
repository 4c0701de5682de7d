// copy, gemm, xent, adamw.
// T tokens, D model, V vocabulary
#include <cblas.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cstring>

#include "kernels/adamw/adamw.h"
#include "kernels/core/threads.h"
#include "kernels/gemm/gemm.h"
#include "kernels/linear_xent/linear_xent.h"
#include "tests/bench/workload.h"

namespace sluice::bench {
namespace {

constexpr double kFloat = sizeof(float);

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
  explicit Copy(int64_t bytes)
      : bytes_(bytes), x_(zeros({bytes}, DType::u8)), y_(zeros({bytes}, DType::u8)) {}

  void forward(const Context& ctx) override {
    if (!ctx.counting()) peer();
  }
  void peer() override {
    constexpr int64_t kBlock = int64_t{4} << 20;
    const uint8_t* const x = x_.as<uint8_t>();
    uint8_t* const y = y_.as<uint8_t>();
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
struct Product {
  ConstTensorView a = {}, b = {};
  TensorView c = {};
  bool transpose_a = false, transpose_b = false;
  float beta = 0;
};
void openblas(const Product& p) {
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
  Linear(int64_t T, int64_t in, int64_t out)
      : x_(uniform({T, in})),
        weight_(uniform({out, in})),
        y_(zeros({T, out})),
        dy_(uniform({T, out})),
        dx_(zeros({T, in})),
        dweight_(zeros({out, in})) {}

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

class OpenBlas final : public Workload {
 public:
  explicit OpenBlas(int64_t n) : x_(uniform({n, n})), weight_(uniform({n, n})), y_(zeros({n, n})) {}
  void forward(const Context& ctx) override {
    if (!ctx.counting()) peer();
  }
  void peer() override { openblas({.a = x_, .b = weight_, .c = y_, .transpose_b = true}); }

 private:
  TensorView x_, weight_, y_;
};

Case linear_case(int64_t T, int64_t in, int64_t out) {
  const double flops = 2.0 * double(T) * double(in) * double(out);
  return {.shape = {{"T", T}, {"in", in}, {"out", out}},
          .forward = {.flops = flops},
          .backward = {.flops = 2 * flops},
          .has_peer = true,
          .make = [=] { return std::make_unique<Linear>(T, in, out); }};
}

class Xent final : public Workload {
 public:
  Xent(int64_t T, int64_t D, int64_t V)
      : hidden_(uniform({1, T, D})),
        weight_(uniform({V, D}, 0.05)),
        targets_(zeros({1, T}, DType::i32)),
        losses_(zeros({1, T})),
        loss_sum_(zeros({1}, DType::f64)),
        dhidden_(zeros({1, T, D})),
        dweight_(zeros({V, D})),
        logits_(zeros({T, V})) {}

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
    openblas({.a = hidden_.matrix(), .b = weight_, .c = logits_, .transpose_b = true});
    openblas({.a = logits_, .b = weight_, .c = dhidden_.matrix()});
    openblas({.a = logits_, .b = hidden_.matrix(), .c = dweight_, .transpose_a = true, .beta = 1});
  }

 private:
  TensorView hidden_, weight_, targets_, losses_, loss_sum_, dhidden_, dweight_, logits_;
};

class Adam final : public Workload {
 public:
  explicit Adam(int64_t n)
      : value_(uniform({n})), grad_(uniform({n})), m_(zeros({n})), v_(zeros({n})) {}
  void forward(const Context& ctx) override {
    adamw(ctx, {.value = value_,
                .grad = grad_,
                .exp_avg = m_,
                .exp_avg_sq = v_,
                .lr = 1e-3,
                .weight_decay = 0.1});
  }

 private:
  TensorView value_, grad_, m_, v_;
};

}  // namespace

Case copy_ceiling() {
  const int64_t bytes = int64_t{128} << 20;
  return {.shape = {{"bytes", bytes}},
          .passes = Passes::forward,
          .forward = {.bytes = 2.0 * double(bytes)},
          .make = [=] { return std::make_unique<Copy>(bytes); }};
}

Case gemm_ceiling() {
  const int64_t n = 2048;
  return {.shape = {{"T", n}, {"in", n}, {"out", n}},
          .passes = Passes::forward,
          .forward = {.flops = 2.0 * double(n) * double(n) * double(n)},
          .make = [=] { return std::make_unique<OpenBlas>(n); }};
}

Family copy_family() { return {.name = "copy", .cases = {copy_ceiling()}}; }

// The square one, then in_proj, x_proj and out_proj of mamba-130m.
Family gemm_family() {
  return {.name = "gemm",
          .cases = {linear_case(2048, 2048, 2048), linear_case(2048, 768, 3072),
                    linear_case(2048, 1536, 80), linear_case(512, 1536, 768)}};
}

Family xent_family() {
  const int64_t T = 512, D = 768, V = 50288;
  const double flops = 2.0 * double(T) * double(D) * double(V);
  return {.name = "xent",
          .cases = {{.shape = {{"B", 1}, {"T", T}, {"D", D}, {"V", V}},
                     .passes = Passes::forward_and_fused,
                     .forward = {.flops = flops},
                     .backward = {.flops = 2 * flops},
                     .has_peer = true,
                     .make = [=] { return std::make_unique<Xent>(T, D, V); }}}};
}

// Reads the gradient, reads and writes the value and both moments.
Family adamw_family() {
  const int64_t n = int64_t{1} << 24;
  return {.name = "adamw",
          .cases = {{.shape = {{"n", n}},
                     .passes = Passes::forward,
                     .forward = {.bytes = 7 * kFloat * double(n)},
                     .make = [=] { return std::make_unique<Adam>(n); }}}};
}

}  // namespace sluice::bench
