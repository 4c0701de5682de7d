// scan: Mamba's selective scan with its gate.
// T tokens, E inner, N state dim, R dt rank
#include "kernels/selective_scan/selective_scan.h"

#include "tests/bench/workload.h"

namespace sluice::bench {
namespace {

constexpr double kFloat = sizeof(float);

// z, B and C are slices of projections, as the layer has them.
class Scan final : public Workload {
 public:
  Scan(int64_t T, int64_t E, int64_t N)
      : E_(E),
        N_(N),
        u_(uniform({1, T, E})),
        delta_(uniform({1, T, E})),
        xz_(uniform({1, T, 2 * E})),
        dt_BC_(uniform({1, T, kDtRank + 2 * N})),
        dt_bias_(uniform({E}, 1, -4)),
        A_log_(uniform({E, N}, 1.4, 1.4)),
        D_(uniform({E})),
        doc_begin_(zeros({1, T}, DType::i32)),
        y_(zeros({1, T, E})),
        span_states_(zeros({1, scan_spans(T), E, N})),
        dy_(uniform({1, T, E})),
        du_(zeros({1, T, E})),
        ddelta_(zeros({1, T, E})),
        dxz_(zeros({1, T, 2 * E})),
        ddt_BC_(zeros({1, T, kDtRank + 2 * N})),
        ddt_bias_(zeros({E})),
        dA_log_(zeros({E, N})),
        dD_(zeros({E})) {}

  void forward(const Context& ctx) override {
    selective_scan_forward(ctx, {.u = u_,
                                 .delta = delta_,
                                 .dt_bias = dt_bias_,
                                 .A_log = A_log_,
                                 .B = dt_BC_.columns(kDtRank, {N_}),
                                 .C = dt_BC_.columns(kDtRank + N_, {N_}),
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
                                  .B = dt_BC_.columns(kDtRank, {N_}),
                                  .C = dt_BC_.columns(kDtRank + N_, {N_}),
                                  .D = D_,
                                  .z = xz_.columns(E_, {E_}),
                                  .doc_begin = doc_begin_,
                                  .span_states = span_states_,
                                  .du = du_,
                                  .ddelta = ddelta_,
                                  .dB = ddt_BC_.columns(kDtRank, {N_}),
                                  .dC = ddt_BC_.columns(kDtRank + N_, {N_}),
                                  .dz = dxz_.columns(E_, {E_}),
                                  .ddt_bias = ddt_bias_,
                                  .dA_log = dA_log_,
                                  .dD = dD_});
  }

 private:
  static constexpr int64_t kDtRank = 48;  // R of mamba-130m

  int64_t E_, N_;
  TensorView u_, delta_, xz_, dt_BC_, dt_bias_, A_log_, D_, doc_begin_, y_, span_states_, dy_, du_,
      ddelta_, dxz_, ddt_BC_, ddt_bias_, dA_log_, dD_;
};

Case scan_case(int64_t T, int64_t E, int64_t N) {
  const double updates = double(T) * double(E) * double(N);
  const double states = double(scan_spans(T)) * double(E) * double(N);
  const double elements = double(T) * double(E);
  const double bc = 2.0 * double(T) * double(N);
  return {.shape = {{"B", 1}, {"T", T}, {"E", E}, {"N", N}},
          // u, delta, z, y
          .forward = {.bytes = kFloat * (4 * elements + bc + states), .updates = updates},
          // dy, u, delta, z, du, ddelta, dz
          .backward = {.bytes = kFloat * (7 * elements + 2 * bc + states), .updates = updates},
          .make = [=] { return std::make_unique<Scan>(T, E, N); }};
}

}  // namespace

Family scan_family() {
  return {.name = "scan", .cases = {scan_case(512, 1536, 16), scan_case(2048, 1536, 16)}};
}

}  // namespace sluice::bench
