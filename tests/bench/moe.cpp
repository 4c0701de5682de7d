// moe: router, sort, experts with SwiGLU, and back; dropless.
// T tokens, D model, X experts, k choices, F hidden width of an expert
#include "kernels/activation/activation.h"
#include "kernels/gemm/gemm.h"
#include "kernels/token_permute/token_permute.h"
#include "kernels/topk_router/topk_router.h"
#include "tests/bench/workload.h"

namespace sluice::bench {
namespace {

class Moe final : public Workload {
 public:
  Moe(int64_t T, int64_t D, int64_t X, int64_t k, int64_t F)
      : F_(F),
        options_{.top_k = k},
        x_(uniform({1, T, D})),
        router_(uniform({X, D}, 0.05)),
        up_(uniform({X, 2 * F, D}, 0.05)),
        down_(uniform({X, D, F}, 0.05)),
        logits_(zeros({1, T, X})),
        experts_(zeros({1, T, k}, DType::i32)),
        weights_(zeros({1, T, k})),
        slot_(zeros({1, T, k}, DType::i32)),
        source_(zeros({T * k}, DType::i32)),
        offsets_(zeros({X + 1}, DType::i64)),
        rows_(zeros({T * k, D})),
        gate_up_(zeros({T * k, 2 * F})),
        hidden_(zeros({T * k, F})),
        out_(zeros({T * k, D})),
        y_(zeros({1, T, D})),
        dy_(uniform({1, T, D})),
        drows_(zeros({T * k, D})),
        dgate_up_(zeros({T * k, 2 * F})),
        dhidden_(zeros({T * k, F})),
        dx_(zeros({1, T, D})),
        dweights_(zeros({1, T, k})),
        dlogits_(zeros({1, T, X})),
        drouter_(zeros({X, D})),
        dup_(zeros({X, 2 * F, D})),
        ddown_(zeros({X, D, F})) {}

  void forward(const Context& ctx) override {
    gemm(ctx, {.a = x_.matrix(), .b = router_, .c = logits_.matrix(), .transpose_b = true});
    topk_router_forward(
        ctx, {.logits = logits_, .experts = experts_, .weights = weights_, .options = options_});
    token_index(ctx, {.experts = experts_, .slot = slot_, .source = source_, .offsets = offsets_});
    token_permute_forward(ctx, {.x = x_, .source = source_, .offsets = offsets_, .rows = rows_});
    grouped_gemm(ctx, {.a = rows_,
                       .weights = up_,
                       .c = gate_up_,
                       .offsets = offsets_,
                       .transpose_weights = true});
    activation_forward(ctx, {.x = gate(gate_up_), .up = up(gate_up_), .y = hidden_});
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
    grouped_gemm(ctx, {.a = drows_, .weights = down_, .c = dhidden_, .offsets = offsets_});
    grouped_gemm_weight(ctx, {.a = drows_, .b = hidden_, .weights = ddown_, .offsets = offsets_});
    activation_backward(ctx, {.dy = dhidden_,
                              .x = gate(gate_up_),
                              .up = up(gate_up_),
                              .dx = gate(dgate_up_),
                              .dup = up(dgate_up_)});
    grouped_gemm(ctx, {.a = dgate_up_, .weights = up_, .c = drows_, .offsets = offsets_});
    grouped_gemm_weight(ctx, {.a = dgate_up_, .b = rows_, .weights = dup_, .offsets = offsets_});
    token_permute_backward(ctx, {.drows = drows_, .slot = slot_, .dx = dx_});
    topk_router_backward(ctx, {.dweights = dweights_,
                               .logits = logits_,
                               .experts = experts_,
                               .dlogits = dlogits_,
                               .options = options_});
    gemm(ctx, {.a = dlogits_.matrix(), .b = router_, .c = dx_.matrix(), .beta = 1});
    gemm(ctx,
         {.a = dlogits_.matrix(), .b = x_.matrix(), .c = drouter_, .transpose_a = true, .beta = 1});
  }

 private:
  TensorView gate(const TensorView& gate_up) const { return gate_up.columns(0, {F_}); }
  TensorView up(const TensorView& gate_up) const { return gate_up.columns(F_, {F_}); }

  int64_t F_;
  RouterOptions options_;
  TensorView x_, router_, up_, down_, logits_, experts_, weights_, slot_, source_, offsets_, rows_,
      gate_up_, hidden_, out_, y_, dy_, drows_, dgate_up_, dhidden_, dx_, dweights_, dlogits_,
      drouter_, dup_, ddown_;
};

}  // namespace

Family moe_family() {
  const int64_t T = 1024, D = 768, X = 8, k = 2, F = 2048;
  const double flops = 2.0 * double(T * k) * 3 * double(D) * double(F);  // gate, up, down
  return {.name = "moe",
          .cases = {{.shape = {{"B", 1}, {"T", T}, {"D", D}, {"X", X}, {"k", k}, {"F", F}},
                     .forward = {.flops = flops},
                     .backward = {.flops = 2 * flops},
                     .make = [=] { return std::make_unique<Moe>(T, D, X, k, F); }}}};
}

}  // namespace sluice::bench
