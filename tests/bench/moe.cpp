// moe: router, sort, experts with SwiGLU, and back; dropless.
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/grouped_ffn.h"
#include "kernels/token_permute/token_permute.h"
#include "kernels/topk_router/topk_router.h"
#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

class Moe final : public Workload {
 public:
  Moe(const Target& target, const MoeShape& s)
      : Workload(target),
        options_{.top_k = s.k},
        x_(uniform({1, s.T, s.D})),
        router_(stat_uniform({s.X, s.D}, 0.05)),
        up_(uniform({s.X, 2 * s.F, s.D}, 0.05)),
        down_(uniform({s.X, s.D, s.F}, 0.05)),
        logits_(stat_zeros({1, s.T, s.X})),
        experts_(zeros({1, s.T, s.k}, DType::i32)),
        weights_(stat_zeros({1, s.T, s.k})),
        slot_(zeros({1, s.T, s.k}, DType::i32)),
        offsets_(zeros({s.X + 1}, DType::i64)),
        rows_(zeros({s.T * s.k, s.D})),
        gate_up_(zeros({s.T * s.k, 2 * s.F})),
        hidden_(zeros({s.T * s.k, s.F})),
        out_(zeros({s.T * s.k, s.D})),
        y_(zeros({1, s.T, s.D})),
        dy_(uniform({1, s.T, s.D})),
        drows_(zeros({s.T * s.k, s.D})),
        dgate_up_(zeros({s.T * s.k, 2 * s.F})),
        dx_(zeros({1, s.T, s.D})),
        dweights_(stat_zeros({1, s.T, s.k})),
        dlogits_(stat_zeros({1, s.T, s.X})),
        drouter_(stat_zeros({s.X, s.D})),
        dup_(stat_zeros({s.X, 2 * s.F, s.D})),
        ddown_(stat_zeros({s.X, s.D, s.F})) {}

  void forward(const Context& ctx) override {
    gemm(ctx, {.a = x_.matrix(), .b = router_, .c = logits_.matrix(), .transpose_b = true});
    topk_router_forward(
        ctx, {.logits = logits_, .experts = experts_, .weights = weights_, .options = options_});
    token_index(ctx, {.experts = experts_, .slot = slot_, .offsets = offsets_});
    token_permute_forward(ctx, {.x = x_, .slot = slot_, .rows = rows_});
    grouped_up(
        ctx,
        {.rows = rows_, .weights = up_, .offsets = offsets_, .up = gate_up_, .hidden = hidden_});
    grouped_gemm(ctx, {.a = hidden_,
                       .weights = down_,
                       .c = out_,
                       .offsets = offsets_,
                       .transpose_weights = true});
    token_unpermute_forward(ctx, {.rows = out_, .slot = slot_, .weights = weights_, .y = y_});
  }

  void backward(const Context& ctx) override {
    token_unpermute_backward(ctx, {.dy = dy_,
                                   .rows = out_,
                                   .slot = slot_,
                                   .weights = weights_,
                                   .drows = drows_,
                                   .dweights = dweights_});
    grouped_down_backward(ctx, {.dout = drows_,
                                .weights = down_,
                                .offsets = offsets_,
                                .up = gate_up_,
                                .dup = dgate_up_,
                                .hidden = hidden_});
    // As in a step's first micro-batch.
    grouped_gemm_weight(
        ctx, {.a = drows_, .b = hidden_, .weights = ddown_, .offsets = offsets_, .beta = 0});
    grouped_gemm_weight(ctx, {.a = dgate_up_,
                              .b = rows_,
                              .weights = dup_,
                              .offsets = offsets_,
                              .beta = 0,
                              .independent = true});
    grouped_gemm(
        ctx,
        {.a = dgate_up_, .weights = up_, .c = drows_, .offsets = offsets_, .independent = true});
    topk_router_backward(ctx, {.dweights = dweights_,
                               .logits = logits_,
                               .experts = experts_,
                               .dlogits = dlogits_,
                               .options = options_});
    token_permute_backward(
        ctx, {.drows = drows_, .slot = slot_, .dlogits = dlogits_, .router = router_, .dx = dx_});
    gemm(ctx,
         {.a = dlogits_.matrix(), .b = x_.matrix(), .c = drouter_, .transpose_a = true, .beta = 1});
  }

 private:
  RouterOptions options_;
  TensorView x_, router_, up_, down_, logits_, experts_, weights_, slot_, offsets_, rows_, gate_up_,
      hidden_, out_, y_, dy_, drows_, dgate_up_, dx_, dweights_, dlogits_, drouter_, dup_, ddown_;
};

}  // namespace

Case moe_case(const Target& target, const MoeShape& s) {
  const double flops = 2.0 * double(s.T * s.k) * 3 * double(s.D) * double(s.F);  // gate, up, down
  return {.shape = {{"B", 1}, {"T", s.T}, {"D", s.D}, {"X", s.X}, {"k", s.k}, {"F", s.F}},
          .forward = {.flops = flops},
          .backward = {.flops = 2 * flops},
          .make = [=] { return std::make_unique<Moe>(target, s); }};
}

}  // namespace sluice::bench
