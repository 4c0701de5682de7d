// Top-k routing of tokens to experts, and the gradients of its losses. Ties go to the lower expert
// (and the lower group).
//
//   softmax   p = softmax(logits)             (Shazeer et al., 2017; Jamba: not renormalised)
//   sigmoid   p = sigmoid(logits)             (DeepSeek-V3; Nemotron-H)
//
// The k experts with the largest p + bias are chosen, among the topk_group best of num_groups
// groups of neighbouring experts (a group's score is the sum of its two largest p + bias). Their
// weights are
//   weight = scale * p,  or  scale * p / sum of the chosen p  if renormalise
// (sigmoid: sum + 1e-20). The bias moves the choice only.
//
// Backward: dlogits from dweights; the choice is constant.
//
// The losses, per row of the batch, so that no layout changes them:
//   balance   X * sum_e f_e P_e,  f_e = count_e / (T k),  P_e = mean_t q[t,e]; f is constant
//             q = softmax(logits), or p / sum p for sigmoid scores
//             (Fedus et al., "Switch Transformers", 2021, eq. 4)
//   z         mean_t (logsumexp logits[t])^2             (Zoph et al., "ST-MoE", 2022, eq. 5)
//
// B batch, T tokens on this rank, X experts, k choices of a token
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
  int64_t num_groups = 1;  // divides X
  int64_t topk_group = 1;  // groups to choose from; they hold at least top_k experts
};

struct TopkRouterForward {
  ConstTensorView logits = {};  // (B, T, X) statistics dtype
  ConstTensorView bias = {};    // (X) statistics dtype, added for the choice only; optional
  TensorView experts = {};      // (B, T, k) i32, in descending order of choice
  TensorView weights = {};      // (B, T, k) statistics dtype
  RouterOptions options = {};
  // experts holds the choice already: the weights alone are computed. On a GPU nobody checks it;
  // the weight of a choice outside [0, X) is NaN.
  bool chosen = false;
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

// Per-row sums that the losses are made of: balance = X * sum_e counts_e mass_e / (k row_tokens^2),
// z = z / row_tokens. Over sequence ranks they are added up first.
struct RouterStatistics {
  ConstTensorView logits = {};   // (B, T, X)
  ConstTensorView experts = {};  // (B, T, k) i32
  TensorView counts = {};        // (B, X) statistics: choices of each expert, overwritten
  TensorView mass = {};          // (B, X): sum over t of q[t,e], overwritten
  TensorView z = {};             // (B): sum over t of logsumexp^2, overwritten
  RouterOptions options = {};
};
void router_statistics(const Context& ctx, const RouterStatistics& args);

// Adds this rank's share of a micro-batch to the step's statistics: of the tokens here, which is
// linear in mass and z.
//   losses[0] += balance_scale * sum_b balance_b;  losses[1] += z_scale * sum_b z_b
//   loads[e]  += sum_b counts_here[b, e]
struct RouterReport {
  ConstTensorView counts_here = {};  // (B, X), of the tokens here
  ConstTensorView counts = {};       // (B, X), over the whole row
  ConstTensorView mass = {};         // (B, X), of the tokens here
  ConstTensorView z = {};            // (B), of the tokens here
  TensorView losses = {};            // (2) f64, added to
  TensorView loads = {};             // (X) f64, added to; optional
  int64_t row_tokens = 0;
  int64_t top_k = 1;
  double balance_scale = 0;
  double z_scale = 0;
};
void router_report(const Context& ctx, const RouterReport& args);

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
