// attention: causal, grouped queries.
#include "kernels/attention/attention.h"

#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

class Attention final : public Workload {
 public:
  Attention(const Target& target, const AttentionShape& s)
      : Workload(target),
        backend_(s.backend),
        q_(uniform({s.B, s.T, s.Hq, s.hd})),
        k_(uniform({s.B, s.T, s.Hkv, s.hd})),
        v_(uniform({s.B, s.T, s.Hkv, s.hd})),
        doc_begin_(zeros({s.B, s.T}, DType::i32)),
        y_(zeros({s.B, s.T, s.Hq, s.hd})),
        lse_(stat_zeros({s.B, s.T, s.Hq})),
        dy_(uniform({s.B, s.T, s.Hq, s.hd})),
        dq_(zeros({s.B, s.T, s.Hq, s.hd})),
        dk_(zeros({s.B, s.T, s.Hkv, s.hd})),
        dv_(zeros({s.B, s.T, s.Hkv, s.hd})) {}

  void forward(const Context& ctx) override {
    attention_forward(ctx, {.q = q_,
                            .k = k_,
                            .v = v_,
                            .doc_begin = doc_begin_,
                            .y = y_,
                            .lse = lse_,
                            .backend = backend_,
                            .one_document = true});
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
                             .dv = dv_,
                             .backend = backend_,
                             .one_document = true});
  }

 private:
  AttentionBackend backend_;
  TensorView q_, k_, v_, doc_begin_, y_, lse_, dy_, dq_, dk_, dv_;
};

}  // namespace

// The causal half counts: two products forward, five backward.
Case attention_case(const Target& target, const AttentionShape& s) {
  const double tokens = double(s.B) * double(s.T);
  const double product = tokens * double(s.T) * double(s.Hq) * double(s.hd);
  const double queries = target.width() * tokens * double(s.Hq) * double(s.hd);
  const double keys = target.width() * tokens * double(s.Hkv) * double(s.hd);
  return {.part = s.backend == AttentionBackend::cudnn ? "cudnn" : "",
          .shape = {{"B", s.B}, {"T", s.T}, {"Hq", s.Hq}, {"Hkv", s.Hkv}, {"hd", s.hd}},
          .forward = {.bytes = 2 * queries + 2 * keys, .flops = 2 * product},
          .backward = {.bytes = 4 * queries + 4 * keys, .flops = 5 * product},
          .make = [=] { return std::make_unique<Attention>(target, s); }};
}

}  // namespace sluice::bench
