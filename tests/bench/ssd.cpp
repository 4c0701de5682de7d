// ssd: the four operators of Mamba-2's SSD as one chain.
// T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks
#include "kernels/chunk_cumsum/chunk_cumsum.h"
#include "kernels/chunk_scan/chunk_scan.h"
#include "kernels/chunk_state/chunk_state.h"
#include "kernels/state_passing/state_passing.h"
#include "tests/bench/workload.h"

namespace sluice::bench {
namespace {

constexpr double kFloat = sizeof(float);

struct Shape {
  int64_t T = 0, H = 0, P = 0, G = 0, N = 0, Q = 0;

  int64_t M() const { return num_chunks(T, Q); }
  int64_t channels() const { return H * P + 2 * G * N; }
};

class Ssd final : public Workload {
 public:
  explicit Ssd(const Shape& s)
      : s_(s),
        xBC_(uniform({1, s.T, s.channels()})),
        dt_raw_(uniform({1, s.T, s.H})),
        dt_bias_(uniform({s.H}, 1, -4)),
        A_log_(uniform({s.H}, 1.4, 1.4)),
        D_(uniform({s.H})),
        doc_begin_(zeros({1, s.T}, DType::i32)),
        dt_(zeros({1, s.T, s.H})),
        cum_(zeros({1, s.T, s.H})),
        state_(zeros({1, s.M(), s.H, s.P, s.N})),
        decay_(zeros({1, s.M(), s.H})),
        y_(zeros({1, s.T, s.H, s.P})),
        dy_(uniform({1, s.T, s.H, s.P})),
        dxBC_(zeros({1, s.T, s.channels()})),
        ddt_(zeros({1, s.T, s.H})),
        dcum_(zeros({1, s.T, s.H})),
        dstate_(zeros({1, s.M(), s.H, s.P, s.N})),
        dlog_decay_(zeros({1, s.M(), s.H})),
        ddt_raw_(zeros({1, s.T, s.H})),
        ddt_bias_(zeros({s.H})),
        dA_log_(zeros({s.H})),
        dD_(zeros({s.H})) {}

  void forward(const Context& ctx) override {
    chunk_cumsum_forward(ctx, {.dt_raw = dt_raw_,
                               .dt_bias = dt_bias_,
                               .A_log = A_log_,
                               .doc_begin = doc_begin_,
                               .dt = dt_,
                               .cum = cum_,
                               .chunk = s_.Q});
    chunk_state_forward(ctx, {.x = x(xBC_),
                              .B = B(xBC_),
                              .dt = dt_,
                              .cum = cum_,
                              .doc_begin = doc_begin_,
                              .state = state_,
                              .decay = decay_,
                              .chunk = s_.Q});
    state_passing_forward(ctx, {.state = state_, .decay = decay_, .incoming = state_});
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
    chunk_scan_backward(ctx, {.dy = dy_,
                              .x = x(xBC_),
                              .B = B(xBC_),
                              .C = C(xBC_),
                              .dt = dt_,
                              .cum = cum_,
                              .D = D_,
                              .doc_begin = doc_begin_,
                              .incoming = state_,
                              .dx = x(dxBC_),
                              .dB = B(dxBC_),
                              .dC = C(dxBC_),
                              .ddt = ddt_,
                              .dcum = dcum_,
                              .dincoming = dstate_,
                              .dD = dD_,
                              .chunk = s_.Q});
    state_passing_backward(ctx, {.dincoming = dstate_,
                                 .incoming = state_,
                                 .decay = decay_,
                                 .doutgoing = dstate_,
                                 .dlog_decay = dlog_decay_});
    chunk_state_backward(ctx, {.dstate = dstate_,
                               .dlog_decay = dlog_decay_,
                               .x = x(xBC_),
                               .B = B(xBC_),
                               .dt = dt_,
                               .cum = cum_,
                               .doc_begin = doc_begin_,
                               .dx = x(dxBC_),
                               .dB = B(dxBC_),
                               .ddt = ddt_,
                               .dcum = dcum_,
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
  TensorView x(const TensorView& xBC) const { return xBC.columns(0, {s_.H, s_.P}); }
  TensorView B(const TensorView& xBC) const { return xBC.columns(s_.H * s_.P, {s_.G, s_.N}); }
  TensorView C(const TensorView& xBC) const {
    return xBC.columns(s_.H * s_.P + s_.G * s_.N, {s_.G, s_.N});
  }

  Shape s_;
  TensorView xBC_, dt_raw_, dt_bias_, A_log_, D_, doc_begin_, dt_, cum_, state_, decay_, y_, dy_,
      dxBC_, ddt_, dcum_, dstate_, dlog_decay_, ddt_raw_, ddt_bias_, dA_log_, dD_;
};

// Pairs of tokens count by their causal half: Q / 2 a token. Forward: C B^T a group; M x, C S and
// x B^T a head. Backward: C B^T again and its gradients to B and C a group; dy x^T, M^T dy, and
// four products with states a head.
Case ssd_case(const Shape& s) {
  const double T = double(s.T), H = double(s.H), P = double(s.P), N = double(s.N);
  const double group_pairs = T * double(s.G) * double(s.Q) * N;
  const double head_pairs = T * H * double(s.Q) * P;
  const double head_state = 2 * T * H * P * N;
  const double channels = T * double(s.channels());
  const double states = double(s.M()) * H * P * N;
  return {
      .shape = {{"B", 1}, {"T", s.T}, {"H", s.H}, {"P", s.P}, {"G", s.G}, {"N", s.N}, {"Q", s.Q}},
      .forward = {.bytes = kFloat * (channels + T * H * P + 2 * states),
                  .flops = group_pairs + head_pairs + 2 * head_state},
      .backward = {.bytes = kFloat * (2 * channels + T * H * P + 4 * states),
                   .flops = 3 * group_pairs + 2 * head_pairs + 4 * head_state},
      .make = [=] { return std::make_unique<Ssd>(s); }};
}

}  // namespace

Family ssd_family() {
  return {.name = "ssd",
          .cases = {ssd_case({.T = 512, .H = 24, .P = 64, .G = 1, .N = 128, .Q = 128}),
                    ssd_case({.T = 2048, .H = 24, .P = 64, .G = 1, .N = 128, .Q = 128}),
                    ssd_case({.T = 2048, .H = 24, .P = 64, .G = 1, .N = 128, .Q = 256})}};
}

}  // namespace sluice::bench
