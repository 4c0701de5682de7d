// attention: causal, grouped queries.
// T tokens, Hq query heads, Hkv key-value heads, hd head dim
#include "kernels/attention/attention.h"

#include "tests/bench/workload.h"

namespace sluice::bench {
namespace {

constexpr double kFloat = sizeof(float);

class Attention final : public Workload {
 public:
  Attention(int64_t T, int64_t Hq, int64_t Hkv, int64_t hd)
      : q_(uniform({1, T, Hq, hd})),
        k_(uniform({1, T, Hkv, hd})),
        v_(uniform({1, T, Hkv, hd})),
        doc_begin_(zeros({1, T}, DType::i32)),
        y_(zeros({1, T, Hq, hd})),
        lse_(zeros({1, T, Hq})),
        dy_(uniform({1, T, Hq, hd})),
        dq_(zeros({1, T, Hq, hd})),
        dk_(zeros({1, T, Hkv, hd})),
        dv_(zeros({1, T, Hkv, hd})) {}

  void forward(const Context& ctx) override {
    attention_forward(ctx,
                      {.q = q_, .k = k_, .v = v_, .doc_begin = doc_begin_, .y = y_, .lse = lse_});
  }
  void backward(const Context& ctx) override {
    attention_backward(ctx, {.dy = dy_,
                             .q = q_,
                             .k = k_,
                             .v = v_,
                             .doc_begin = doc_begin_,
                             .y = y_,
                             .lse = lse_,
                             .dq = dq_,
                             .dk = dk_,
                             .dv = dv_});
  }

 private:
  TensorView q_, k_, v_, doc_begin_, y_, lse_, dy_, dq_, dk_, dv_;
};

// The causal half counts: two products forward, five backward.
Case attention_case(int64_t T, int64_t Hq, int64_t Hkv, int64_t hd) {
  const double product = double(T) * double(T) * double(Hq) * double(hd);
  const double queries = double(T) * double(Hq) * double(hd);
  const double keys = double(T) * double(Hkv) * double(hd);
  return {.shape = {{"B", 1}, {"T", T}, {"Hq", Hq}, {"Hkv", Hkv}, {"hd", hd}},
          .forward = {.bytes = kFloat * (2 * queries + 2 * keys), .flops = 2 * product},
          .backward = {.bytes = kFloat * (4 * queries + 4 * keys), .flops = 5 * product},
          .make = [=] { return std::make_unique<Attention>(T, Hq, Hkv, hd); }};
}

}  // namespace

Family attention_family() {
  return {.name = "attention",
          .cases = {attention_case(512, 12, 4, 64), attention_case(2048, 12, 4, 64)}};
}

}  // namespace sluice::bench
