// scan: Mamba's selective scan with its gate.
#include "kernels/selective_scan/selective_scan.h"

#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

// z, B and C are slices of projections, as the layer has them.
class Scan final : public Workload {
 public:
  Scan(const Target& target, const ScanShape& s)
      : Workload(target),
        E_(s.E),
        N_(s.N),
        u_(uniform({s.B, s.T, s.E})),
        delta_(uniform({s.B, s.T, s.E})),
        xz_(uniform({s.B, s.T, 2 * s.E})),
        dt_BC_(uniform({s.B, s.T, dt_rank() + 2 * s.N})),
        dt_bias_(stat_uniform({s.E}, 1, -4)),
        A_log_(stat_uniform({s.E, s.N}, 1.4, 1.4)),
        D_(stat_uniform({s.E})),
        doc_begin_(zeros({s.B, s.T}, DType::i32)),
        y_(zeros({s.B, s.T, s.E})),
        span_states_(stat_zeros({s.B, scan_spans(s.T), s.E, s.N})),
        dy_(uniform({s.B, s.T, s.E})),
        du_(zeros({s.B, s.T, s.E})),
        ddelta_(zeros({s.B, s.T, s.E})),
        dxz_(zeros({s.B, s.T, 2 * s.E})),
        ddt_BC_(zeros({s.B, s.T, dt_rank() + 2 * s.N})),
        ddt_bias_(stat_zeros({s.E})),
        dA_log_(stat_zeros({s.E, s.N})),
        dD_(stat_zeros({s.E})) {}

  void forward(const Context& ctx) override {
    selective_scan_forward(ctx, {.u = u_,
                                 .delta = delta_,
                                 .dt_bias = dt_bias_,
                                 .A_log = A_log_,
                                 .B = dt_BC_.columns(dt_rank(), {N_}),
                                 .C = dt_BC_.columns(dt_rank() + N_, {N_}),
                                 .D = D_,
                                 .z = xz_.columns(E_, {E_}),
                                 .doc_begin = doc_begin_,
                                 .y = y_,
                                 .span_states = span_states_});
  }
  void backward(const Context& ctx) override {
    selective_scan_backward(ctx, {.dy = dy_,
                                  .u = u_,
                                  .delta = delta_,
                                  .dt_bias = dt_bias_,
                                  .A_log = A_log_,
                                  .B = dt_BC_.columns(dt_rank(), {N_}),
                                  .C = dt_BC_.columns(dt_rank() + N_, {N_}),
                                  .D = D_,
                                  .z = xz_.columns(E_, {E_}),
                                  .doc_begin = doc_begin_,
                                  .span_states = span_states_,
                                  .du = du_,
                                  .ddelta = ddelta_,
                                  .dB = ddt_BC_.columns(dt_rank(), {N_}),
                                  .dC = ddt_BC_.columns(dt_rank() + N_, {N_}),
                                  .dz = dxz_.columns(E_, {E_}),
                                  .ddt_bias = ddt_bias_,
                                  .dA_log = dA_log_,
                                  .dD = dD_});
  }

 private:
  int64_t dt_rank() const { return E_ / 32; }  // the models' own: D / 16 of E = 2 D

  int64_t E_, N_;
  TensorView u_, delta_, xz_, dt_BC_, dt_bias_, A_log_, D_, doc_begin_, y_, span_states_, dy_, du_,
      ddelta_, dxz_, ddt_BC_, ddt_bias_, dA_log_, dD_;
};

}  // namespace

Case scan_case(const Target& target, const ScanShape& s) {
  const double updates = double(s.B) * double(s.T) * double(s.E) * double(s.N);
  const double states = kFloat * double(s.B) * double(scan_spans(s.T)) * double(s.E) * double(s.N);
  const double elements = target.width() * double(s.B) * double(s.T) * double(s.E);
  const double bc = target.width() * 2.0 * double(s.B) * double(s.T) * double(s.N);
  return {.shape = {{"B", s.B}, {"T", s.T}, {"E", s.E}, {"N", s.N}},
          // u, delta, z, y
          .forward = {.bytes = 4 * elements + bc + states, .updates = updates},
          // dy, u, delta, z, du, ddelta, dz
          .backward = {.bytes = 7 * elements + 2 * bc + states, .updates = updates},
          .make = [=] { return std::make_unique<Scan>(target, s); }};
}

}  // namespace sluice::bench
