// The error of the selective scan in bf16.
#include "kernels/selective_scan/selective_scan.h"
#include "tests/support/bf16_error.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

struct ScanErrorShape {
  int64_t T = 1, E = 1, N = 1;
  int64_t begin = 0;  // of the second document
};
void PrintTo(const ScanErrorShape& shape, std::ostream* out) { *out << "E" << shape.E; }

void run_scan(Side& side, const ScanErrorShape& s, Inputs& inputs) {
  const Dims of_token{1, s.T, s.E}, of_BC{1, s.T, s.N};
  const TensorView u = side.normal(of_token), delta = side.normal(of_token);
  const TensorView z = side.normal(of_token), dy = side.normal(of_token);
  const TensorView B = side.normal(of_BC), C = side.normal(of_BC);
  const TensorView dt_bias = side.stat_normal({s.E}, 0.5, -3), D = side.stat_normal({s.E});
  const TensorView A_log = side.stat_normal({s.E, s.N}, 0.5, 0.2);
  const TensorView doc_begin = side.copy_of(documents(1, s.T, {{s.begin}}));
  const TensorView spans = side.nothing({1, scan_spans(s.T), s.E, s.N}, side.stat());
  const auto zeros = [&](const Dims& dims) {
    return side.values(dims, side.stat(), std::vector<double>(dims.numel()));
  };
  selective_scan_forward(side.ctx(), {.u = u,
                                      .delta = delta,
                                      .dt_bias = dt_bias,
                                      .A_log = A_log,
                                      .B = B,
                                      .C = C,
                                      .D = D,
                                      .z = z,
                                      .doc_begin = doc_begin,
                                      .y = side.output("y", of_token, side.dtype()),
                                      .span_states = spans});
  selective_scan_backward(side.ctx(), {.dy = dy,
                                       .u = u,
                                       .delta = delta,
                                       .dt_bias = dt_bias,
                                       .A_log = A_log,
                                       .B = B,
                                       .C = C,
                                       .D = D,
                                       .z = z,
                                       .doc_begin = doc_begin,
                                       .span_states = spans,
                                       .du = side.output("du", of_token, side.dtype()),
                                       .ddelta = side.output("ddelta", of_token, side.dtype()),
                                       .dB = side.output("dB", of_BC, side.dtype()),
                                       .dC = side.output("dC", of_BC, side.dtype()),
                                       .dz = side.output("dz", of_token, side.dtype()),
                                       .ddt_bias = zeros({s.E}),
                                       .dA_log = zeros({s.E, s.N}),
                                       .dD = zeros({s.E})});
  inputs = {{"u", u}, {"delta", delta},     {"z", z}, {"dy", dy},      {"B", B},
            {"C", C}, {"dt_bias", dt_bias}, {"D", D}, {"A_log", A_log}};
}

// A channel's columns of inputs, and what follows from one token alone.
struct Channel {
  Channel(const ScanErrorShape& s, int64_t e, const Values& inputs, Rounding rounding)
      : D(inputs.at("D")[e]) {
    const auto column = [&](const char* name, int64_t t) { return inputs.at(name)[t * s.E + e]; };
    for (int64_t n = 0; n < s.N; ++n) A.push_back(-std::exp(inputs.at("A_log")[e * s.N + n]));
    for (int64_t t = 0; t < s.T; ++t) {
      u.push_back(column("u", t)), z.push_back(column("z", t)), dy.push_back(column("dy", t));
      raw.push_back(column("delta", t) + inputs.at("dt_bias")[e]);
      dt.push_back(std::log1p(std::exp(raw[t])));
      input.push_back(round_to(rounding, dt[t] * u[t]));
      dsum.push_back(round_to(rounding, dy[t] * z[t] * sigmoid(z[t])));
    }
  }
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

  double D;
  std::vector<double> A, u, z, dy, raw, dt, input, dsum;
};

// Of a channel, rounded as products read them: the states (T, N), or their gradients. What is
// carried from token to token is not rounded.
Matrix states_of(const ScanErrorShape& s, const Channel& channel, const Matrix& B,
                 Rounding rounding) {
  Matrix states(s.T, s.N);
  for (int64_t n = 0; n < s.N; ++n) {
    double h = 0;
    for (int64_t t = 0; t < s.T; ++t) {
      if (t == s.begin) h = 0;
      h = std::exp(channel.dt[t] * channel.A[n]) * h + channel.input[t] * B.at(t, n);
      states.at(t, n) = round_to(rounding, h);
    }
  }
  return states;
}
Matrix state_gradients_of(const ScanErrorShape& s, const Channel& channel, const Matrix& C,
                          Rounding rounding) {
  Matrix gradients(s.T, s.N);
  for (int64_t n = 0; n < s.N; ++n) {
    double dh = 0;
    for (int64_t t = s.T; t-- > 0;) {
      const bool last = t + 1 == s.T || t + 1 == s.begin;
      dh = (last ? 0 : std::exp(channel.dt[t + 1] * channel.A[n]) * dh) +
           channel.dsum[t] * C.at(t, n);
      gradients.at(t, n) = round_to(rounding, dh);
    }
  }
  return gradients;
}

Outputs straightforward_scan(const ScanErrorShape& s, const Values& inputs, Rounding rounding) {
  Outputs outputs;
  const Matrix B = part(inputs.at("B"), 1, 0, s.N), C = part(inputs.at("C"), 1, 0, s.N);
  Matrix dB(s.T, s.N), dC(s.T, s.N);
  for (int64_t e = 0; e < s.E; ++e) {
    const Channel channel(s, e, inputs, rounding);
    const Matrix h = states_of(s, channel, B, rounding);
    const Matrix dh = state_gradients_of(s, channel, C, rounding);
    Matrix y(s.T, 1), du(s.T, 1), ddelta(s.T, 1), dz(s.T, 1);
    for (int64_t t = 0; t < s.T; ++t) {
      double sum = 0, dinput = 0, ddt = 0;
      const bool starts = t == 0 || t == s.begin;
      for (int64_t n = 0; n < s.N; ++n) {
        sum += C.at(t, n) * h.at(t, n), dinput += B.at(t, n) * dh.at(t, n);
        const double before = starts ? 0 : h.at(t - 1, n), A = channel.A[n];
        ddt += dh.at(t, n) * A * std::exp(channel.dt[t] * A) * before;
        dB.at(t, n) += dh.at(t, n) * channel.input[t];
        dC.at(t, n) += h.at(t, n) * channel.dsum[t];
      }
      sum = round_to(rounding, sum + channel.D * channel.u[t]);
      const double z = channel.z[t], gate = Channel::sigmoid(z);
      y.at(t, 0) = sum * z * gate;
      dz.at(t, 0) = channel.dy[t] * sum * gate * (1 + z * (1 - gate));
      du.at(t, 0) = channel.dt[t] * dinput + channel.D * channel.dsum[t];
      ddelta.at(t, 0) = (ddt + channel.u[t] * dinput) * Channel::sigmoid(channel.raw[t]);
    }
    outputs.add("y", s.E, e, y, rounding), outputs.add("dz", s.E, e, dz, rounding);
    outputs.add("du", s.E, e, du, rounding), outputs.add("ddelta", s.E, e, ddelta, rounding);
  }
  outputs.add("dB", 1, 0, dB, rounding), outputs.add("dC", 1, 0, dC, rounding);
  return outputs;
}

class SelectiveScanGpuError : public testing::TestWithParam<ScanErrorShape> {};

TEST_P(SelectiveScanGpuError, IsAtMostThatOfTheStraightforwardComputation) {
  check_errors(GetParam(), run_scan, straightforward_scan);
}
INSTANTIATE_TEST_SUITE_P(Shapes, SelectiveScanGpuError,
                         testing::Values(ScanErrorShape{200, 96, 16, 70},
                                         ScanErrorShape{150, 200, 24, 33}));

}  // namespace
}  // namespace sluice::test
