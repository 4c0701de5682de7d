// ssd: the operators of Mamba-2's SSD as one chain, in the layer's order.
// M chunks
#include "kernels/chunk_cumsum/chunk_cumsum.h"
#include "kernels/chunk_scan/chunk_scan.h"
#include "kernels/chunk_scan/ssd_backward.h"
#include "kernels/chunk_scan/ssd_forward.h"
#include "kernels/chunk_state/entering_states.h"
#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

int64_t chunks(const SsdShape& s) { return num_chunks(s.T, s.Q); }
int64_t channels(const SsdShape& s) { return s.H * s.P + 2 * s.G * s.N; }

class Ssd final : public Workload {
 public:
  Ssd(const Target& target, const SsdShape& s)
      : Workload(target),
        s_(s),
        xBC_(uniform({s.B, s.T, channels(s)})),
        dt_raw_(uniform({s.B, s.T, s.H})),
        dt_bias_(stat_uniform({s.H}, 1, -4)),
        A_log_(stat_uniform({s.H}, 1.4, 1.4)),
        D_(stat_uniform({s.H})),
        doc_begin_(zeros({s.B, s.T}, DType::i32)),
        dt_(stat_zeros({s.B, s.T, s.H})),
        cum_(stat_zeros({s.B, s.T, s.H})),
        state_(zeros({s.B, chunks(s), s.H, s.P, s.N})),
        decay_(stat_zeros({s.B, chunks(s), s.H})),
        y_(zeros({s.B, s.T, s.H, s.P})),
        dy_(uniform({s.B, s.T, s.H, s.P})),
        dxBC_(zeros({s.B, s.T, channels(s)})),
        ddt_(stat_zeros({s.B, s.T, s.H})),
        dcum_(stat_zeros({s.B, s.T, s.H})),
        ddt_raw_(zeros({s.B, s.T, s.H})),
        ddt_bias_(stat_zeros({s.H})),
        dA_log_(stat_zeros({s.H})),
        dD_(stat_zeros({s.H})) {}

  void forward(const Context& ctx) override {
    if (s_.recompute) {
      find_steps(ctx);
      ssd_forward(ctx, {.x = x(xBC_),
                        .B = B(xBC_),
                        .C = C(xBC_),
                        .dt = dt_,
                        .cum = cum_,
                        .D = D_,
                        .doc_begin = doc_begin_,
                        .y = y_,
                        .chunk = s_.Q});
      return;
    }
    find_states(ctx);
    chunk_scan_forward(ctx, {.x = x(xBC_),
                             .B = B(xBC_),
                             .C = C(xBC_),
                             .dt = dt_,
                             .cum = cum_,
                             .D = D_,
                             .doc_begin = doc_begin_,
                             .incoming = state_,
                             .y = y_,
                             .chunk = s_.Q});
  }

  void backward(const Context& ctx) override {
    if (s_.recompute) find_states(ctx);
    ssd_backward(ctx, {.dy = dy_,
                       .x = x(xBC_),
                       .B = B(xBC_),
                       .C = C(xBC_),
                       .dt = dt_,
                       .cum = cum_,
                       .D = D_,
                       .doc_begin = doc_begin_,
                       .incoming = state_,
                       .decay = decay_,
                       .dx = x(dxBC_),
                       .dB = B(dxBC_),
                       .dC = C(dxBC_),
                       .ddt = ddt_,
                       .dcum = dcum_,
                       .dD = dD_,
                       .chunk = s_.Q});
    chunk_cumsum_backward(ctx, {.ddt = ddt_,
                                .dcum = dcum_,
                                .dt_raw = dt_raw_,
                                .dt_bias = dt_bias_,
                                .A_log = A_log_,
                                .doc_begin = doc_begin_,
                                .ddt_raw = ddt_raw_,
                                .ddt_bias = ddt_bias_,
                                .dA_log = dA_log_,
                                .chunk = s_.Q});
  }

 private:
  void find_steps(const Context& ctx) {
    chunk_cumsum_forward(ctx, {.dt_raw = dt_raw_,
                               .dt_bias = dt_bias_,
                               .A_log = A_log_,
                               .doc_begin = doc_begin_,
                               .dt = dt_,
                               .cum = cum_,
                               .chunk = s_.Q});
  }
  // The state before each chunk.
  void find_states(const Context& ctx) {
    find_steps(ctx);
    entering_states(ctx, {.x = x(xBC_),
                          .B = B(xBC_),
                          .dt = dt_,
                          .cum = cum_,
                          .doc_begin = doc_begin_,
                          .incoming = state_,
                          .decay = decay_,
                          .chunk = s_.Q});
  }

  TensorView x(const TensorView& xBC) const { return xBC.columns(0, {s_.H, s_.P}); }
  TensorView B(const TensorView& xBC) const { return xBC.columns(s_.H * s_.P, {s_.G, s_.N}); }
  TensorView C(const TensorView& xBC) const {
    return xBC.columns(s_.H * s_.P + s_.G * s_.N, {s_.G, s_.N});
  }

  SsdShape s_;
  TensorView xBC_, dt_raw_, dt_bias_, A_log_, D_, doc_begin_, dt_, cum_, state_, decay_, y_, dy_,
      dxBC_, ddt_, dcum_, ddt_raw_, ddt_bias_, dA_log_, dD_;
};

}  // namespace

// Pairs of tokens count by their causal half: Q / 2 a token. Forward: C B^T a group; M x, C S and
// x B^T a head. Backward: C B^T again and its gradients to B and C a group; dy x^T, M^T dy, and
// four products with states a head, and x B^T where states are recomputed. The states themselves
// count as bytes where the operators must write them: a GPU can keep them in registers.
Case ssd_case(const Target& target, const SsdShape& s) {
  const double T = double(s.B) * double(s.T), H = double(s.H), P = double(s.P), N = double(s.N);
  const double group_pairs = T * double(s.G) * double(s.Q) * N;
  const double head_pairs = T * H * double(s.Q) * P;
  const double head_state = 2 * T * H * P * N;
  const double xBC = target.width() * T * double(channels(s));
  const double y = target.width() * T * H * P;
  const double states =
      target.device.is_cpu() ? kFloat * double(s.B) * double(chunks(s)) * H * P * N : 0;
  const double again = s.recompute ? head_state : 0;
  return {
      .shape = {{"B", s.B}, {"T", s.T}, {"H", s.H}, {"P", s.P}, {"G", s.G}, {"N", s.N}, {"Q", s.Q}},
      .forward = {.bytes = xBC + y + 2 * states,
                  .flops = group_pairs + head_pairs + 2 * head_state},
      .backward = {.bytes = 2 * xBC + y + 4 * states,
                   .flops = 3 * group_pairs + 2 * head_pairs + 4 * head_state + again},
      .make = [=] { return std::make_unique<Ssd>(target, s); }};
}

}  // namespace sluice::bench
