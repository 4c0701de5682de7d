// Top-k routing of tokens to experts, and its losses. Rows are tokens; ties go to the lower expert.
//
//   softmax:  p = softmax(logits); the k largest; weight = p, or p / sum of the chosen p if
//   renormalise
//             (Shazeer et al., 2017; Jamba: not renormalised)
//   sigmoid:  p = sigmoid(logits); chosen by p + bias, within the topk_group best of num_groups
//   groups
//             (a group's score is the sum of its two largest p + bias); weight = p, divided by the
//             sum of the chosen p + 1e-20 if renormalise, times scale (DeepSeek-V3; Nemotron-H)
//
// Backward: dlogits from dweight; the choice is constant. dlogits also receives the losses'
// gradients:
//   balance   (Fedus et al., "Switch Transformers", 2021, eq. 4, with a row of the batch in place
//   of the
//             batch, so that no layout changes it):  X * sum_e f_e P_e,  f_e = count_e / (T k),
//             P_e = mean_t q[t,e],  q = softmax(logits), or p / sum p for sigmoid scores. f is
//             constant.
//   z         (Zoph et al., "ST-MoE", 2022, eq. 5):  mean_t (logsumexp logits[t])^2
#pragma once

#include <span>

#include "kernels/core/context.h"

namespace sluice {

enum class RouterScore : uint8_t { softmax, sigmoid };
std::span<const char* const> enum_names(RouterScore);

struct RouterOptions {
  RouterScore score = RouterScore::softmax;
  int64_t top_k = 1;
  bool renormalise = false;
  double scale = 1;        // routed scaling factor
  int64_t num_groups = 1;  // sigmoid only; divides X
  int64_t topk_group = 1;
};

struct TopkRouterForward {
  ConstTensorView logits = {};  // (B, T, X) statistics dtype
  ConstTensorView bias = {};    // (X), added for the choice only; optional
  TensorView experts = {};      // (B, T, k) i32, in descending order of choice
  TensorView weights = {};      // (B, T, k)
  RouterOptions options = {};
};
void topk_router_forward(const Context& ctx, const TopkRouterForward& args);

struct TopkRouterBackward {
  ConstTensorView dweights = {};  // (B, T, k)
  ConstTensorView logits = {};    // (B, T, X)
  ConstTensorView experts = {};   // (B, T, k) i32
  TensorView dlogits = {};        // (B, T, X), overwritten
  RouterOptions options = {};
};
void topk_router_backward(const Context& ctx, const TopkRouterBackward& args);

// Per-row sums that the losses are made of. Over sequence ranks they are added up before
// router_losses.
struct RouterStatistics {
  ConstTensorView logits = {};   // (B, T, X)
  ConstTensorView experts = {};  // (B, T, k) i32
  TensorView counts = {};        // (B, X) statistics: choices of each expert, overwritten
  TensorView mass = {};          // (B, X): sum over t of q[t,e], overwritten
  TensorView z = {};             // (B): sum over t of logsumexp^2, overwritten
  RouterOptions options = {};
};
void router_statistics(const Context& ctx, const RouterStatistics& args);

// Adds to dlogits the gradients of balance_scale * sum_b balance_b + z_scale * sum_b z_b, where the
// per-row losses are means over row_tokens tokens.
struct RouterLossBackward {
  ConstTensorView logits = {};  // (B, T, X)
  ConstTensorView counts = {};  // (B, X), over the whole row
  TensorView dlogits = {};      // (B, T, X), added to
  int64_t row_tokens = 0;
  double balance_scale = 0;
  double z_scale = 0;
  RouterOptions options = {};
};
void router_loss_backward(const Context& ctx, const RouterLossBackward& args);

}  // namespace sluice
