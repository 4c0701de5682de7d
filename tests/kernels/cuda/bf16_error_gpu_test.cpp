// The errors of attention and of Mamba-2's SSD in bf16.
#include "kernels/attention/attention.h"
#include "kernels/chunk_cumsum/chunk_cumsum.h"
#include "kernels/chunk_scan/ssd_backward.h"
#include "kernels/chunk_scan/ssd_forward.h"
#include "tests/support/bf16_error.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

struct AttentionShape {
  int64_t T = 1, Hq = 1, Hkv = 1, hd = 1;
  int64_t begin = 0;  // of the second document
};
void PrintTo(const AttentionShape& shape, std::ostream* out) { *out << "hd" << shape.hd; }

void run_attention(Side& side, const AttentionShape& s, Inputs& inputs) {
  const TensorView q = side.normal({1, s.T, s.Hq, s.hd}), k = side.normal({1, s.T, s.Hkv, s.hd});
  const TensorView v = side.normal(k.dims), dy = side.normal(q.dims);
  const TensorView doc_begin = side.copy_of(documents(1, s.T, {{s.begin}}));
  const TensorView y = side.output("y", q.dims, side.dtype());
  const TensorView lse = side.nothing({1, s.T, s.Hq}, side.stat());
  attention_forward(side.ctx(),
                    {.q = q, .k = k, .v = v, .doc_begin = doc_begin, .y = y, .lse = lse});
  attention_backward(side.ctx(), {.dy = dy,
                                  .q = q,
                                  .k = k,
                                  .v = v,
                                  .doc_begin = doc_begin,
                                  .y = y,
                                  .lse = lse,
                                  .dq = side.output("dq", q.dims, side.dtype()),
                                  .dk = side.output("dk", k.dims, side.dtype()),
                                  .dv = side.output("dv", k.dims, side.dtype())});
  inputs = {{"q", q}, {"k", k}, {"v", v}, {"dy", dy}};
}

// Of scores, the softmax over the keys that a query sees.
Matrix softmax(const Matrix& scores, int64_t second_document, Rounding rounding) {
  Matrix p(scores.rows, scores.columns);
  for (int64_t t = 0; t < p.rows; ++t) {
    const int64_t first = t >= second_document ? second_document : 0;
    double sum = 0;
    for (int64_t s = first; s <= t; ++s) sum += std::exp(scores.at(t, s));
    for (int64_t s = first; s <= t; ++s)
      p.at(t, s) = round_to(rounding, std::exp(scores.at(t, s)) / sum);
  }
  return p;
}

Outputs straightforward_attention(const AttentionShape& a, const Values& inputs,
                                  Rounding rounding) {
  Outputs outputs;
  const double scale = 1 / std::sqrt(double(a.hd));
  for (int64_t h = 0; h < a.Hq; ++h) {
    const int64_t kv = h * a.Hkv / a.Hq;
    const Matrix q = part(inputs.at("q"), a.Hq, h, a.hd), k = part(inputs.at("k"), a.Hkv, kv, a.hd);
    const Matrix v = part(inputs.at("v"), a.Hkv, kv, a.hd);
    const Matrix dy = part(inputs.at("dy"), a.Hq, h, a.hd);
    const Matrix p = softmax(product(q, transposed(k), rounding, scale), a.begin, rounding);
    outputs.add("y", a.Hq, h, product(p, v, rounding), rounding);
    outputs.add("dv", a.Hkv, kv, product(transposed(p), dy, rounding), rounding);
    const Matrix dp = product(dy, transposed(v), rounding);
    std::vector<double> delta(a.T);
    for (int64_t t = 0; t < a.T; ++t) {
      for (int64_t s = 0; s < a.T; ++s) delta[t] += p.at(t, s) * dp.at(t, s);
    }
    const Matrix ds = make(a.T, a.T, rounding, [&](int64_t t, int64_t s) {
      return p.at(t, s) * (dp.at(t, s) - delta[t]);
    });
    outputs.add("dq", a.Hq, h, product(ds, k, rounding, scale), rounding);
    outputs.add("dk", a.Hkv, kv, product(transposed(ds), q, rounding, scale), rounding);
  }
  return outputs;
}

class AttentionGpuError : public testing::TestWithParam<AttentionShape> {};

TEST_P(AttentionGpuError, IsAtMostThatOfTheStraightforwardComputation) {
  check_errors(GetParam(), run_attention, straightforward_attention);
}
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionGpuError,
                         testing::Values(AttentionShape{200, 2, 1, 64, 70},
                                         AttentionShape{200, 2, 1, 128, 70}));

struct SsdErrorShape {
  int64_t T = 1, H = 1, G = 1, P = 1, N = 1, Q = 1;
  int64_t begin = 0;  // of the second document
};
void PrintTo(const SsdErrorShape& shape, std::ostream* out) { *out << "Q" << shape.Q; }

void run_ssd(Side& side, const SsdErrorShape& s, Inputs& inputs) {
  const int64_t M = num_chunks(s.T, s.Q);
  const TensorView x = side.normal({1, s.T, s.H, s.P}), dy = side.normal(x.dims);
  const TensorView B = side.normal({1, s.T, s.G, s.N}), C = side.normal(B.dims);
  const TensorView dt_raw = side.normal({1, s.T, s.H});
  const TensorView dt_bias = side.stat_normal({s.H}, 0.5, -3), D = side.stat_normal({s.H});
  const TensorView A_log = side.stat_normal({s.H}, 0.3);
  const TensorView doc_begin = side.copy_of(documents(1, s.T, {{s.begin}}));
  const TensorView dt = side.nothing({1, s.T, s.H}, side.stat()),
                   cum = side.nothing(dt.dims, dt.dtype);
  const TensorView incoming = side.nothing({1, M, s.H, s.P, s.N}, side.dtype());
  const TensorView decay = side.nothing({1, M, s.H}, side.stat());
  const TensorView ddt = side.nothing(dt.dims, dt.dtype), dcum = side.nothing(dt.dims, dt.dtype);
  const auto zeros = [&] { return side.values({s.H}, side.stat(), std::vector<double>(s.H)); };
  chunk_cumsum_forward(side.ctx(), {.dt_raw = dt_raw,
                                    .dt_bias = dt_bias,
                                    .A_log = A_log,
                                    .doc_begin = doc_begin,
                                    .dt = dt,
                                    .cum = cum,
                                    .chunk = s.Q});
  ssd_forward(side.ctx(), {.x = x,
                           .B = B,
                           .C = C,
                           .dt = dt,
                           .cum = cum,
                           .D = D,
                           .doc_begin = doc_begin,
                           .y = side.output("y", x.dims, side.dtype()),
                           .chunk = s.Q});
  entering_states(side.ctx(), {.x = x,
                               .B = B,
                               .dt = dt,
                               .cum = cum,
                               .doc_begin = doc_begin,
                               .incoming = incoming,
                               .decay = decay,
                               .chunk = s.Q});
  ssd_backward(side.ctx(), {.dy = dy,
                            .x = x,
                            .B = B,
                            .C = C,
                            .dt = dt,
                            .cum = cum,
                            .D = D,
                            .doc_begin = doc_begin,
                            .incoming = incoming,
                            .decay = decay,
                            .dx = side.output("dx", x.dims, side.dtype()),
                            .dB = side.output("dB", B.dims, side.dtype()),
                            .dC = side.output("dC", B.dims, side.dtype()),
                            .ddt = ddt,
                            .dcum = dcum,
                            .dD = zeros(),
                            .chunk = s.Q});
  chunk_cumsum_backward(side.ctx(), {.ddt = ddt,
                                     .dcum = dcum,
                                     .dt_raw = dt_raw,
                                     .dt_bias = dt_bias,
                                     .A_log = A_log,
                                     .doc_begin = doc_begin,
                                     .ddt_raw = side.output("ddt_raw", dt_raw.dims, side.dtype()),
                                     .ddt_bias = zeros(),
                                     .dA_log = zeros(),
                                     .chunk = s.Q});
  inputs = {{"x", x},           {"dy", dy},           {"B", B},         {"C", C},
            {"dt_raw", dt_raw}, {"dt_bias", dt_bias}, {"A_log", A_log}, {"D", D}};
}

// A head's steps, and the logarithms of all decays: of state s as it reaches t, log_decay[t] -
// log_decay[s].
struct Steps {
  std::vector<double> raw, dt, log_decay;
  double A = 0;
};

Steps steps_of(const SsdErrorShape& s, int64_t h, const Values& inputs) {
  Steps steps{.raw = {}, .dt = {}, .log_decay = {}, .A = -std::exp(inputs.at("A_log")[h])};
  double sum = 0;
  for (int64_t t = 0; t < s.T; ++t) {
    steps.raw.push_back(inputs.at("dt_raw")[t * s.H + h] + inputs.at("dt_bias")[h]);
    steps.dt.push_back(std::log1p(std::exp(steps.raw.back())));
    steps.log_decay.push_back(sum += steps.dt.back() * steps.A);
  }
  return steps;
}

// The gradient of dt_raw: dM as y has it, M = scores * decays * dt, `pairs` = scores * decays.
Matrix gradient_of_steps(const Steps& steps, const Matrix& dM, const Matrix& pairs, const Matrix& M,
                         Rounding rounding) {
  const int64_t T = dM.rows;
  std::vector<double> direct(T), dlog_decay(T);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t s = 0; s <= t; ++s) {
      direct[s] += dM.at(t, s) * pairs.at(t, s);
      dlog_decay[t] += dM.at(t, s) * M.at(t, s);
      dlog_decay[s] -= dM.at(t, s) * M.at(t, s);
    }
  }
  Matrix ddt_raw(T, 1);
  double later = 0;
  for (int64_t t = T; t-- > 0;) {
    later += dlog_decay[t];
    const double sigmoid = 1 / (1 + std::exp(-steps.raw[t]));
    ddt_raw.at(t, 0) = round_to(rounding, (direct[t] + steps.A * later) * sigmoid);
  }
  return ddt_raw;
}

// The whole row as one chunk: y = M x + D x.
Outputs straightforward_ssd(const SsdErrorShape& s, const Values& inputs, Rounding rounding) {
  Outputs outputs;
  for (int64_t h = 0; h < s.H; ++h) {
    const int64_t g = h * s.G / s.H;
    const Matrix x = part(inputs.at("x"), s.H, h, s.P), dy = part(inputs.at("dy"), s.H, h, s.P);
    const Matrix B = part(inputs.at("B"), s.G, g, s.N), C = part(inputs.at("C"), s.G, g, s.N);
    const Steps steps = steps_of(s, h, inputs);
    const auto decay = [&](int64_t t, int64_t from) {
      const bool seen = from <= t && (t >= s.begin) == (from >= s.begin);
      return seen ? std::exp(steps.log_decay[t] - steps.log_decay[from]) : 0;
    };
    const double D = inputs.at("D")[h];
    const Matrix scores = product(C, transposed(B), rounding);
    const Matrix pairs = make(s.T, s.T, rounding, [&](int64_t t, int64_t from) {
      return scores.at(t, from) * decay(t, from);
    });
    const Matrix M = make(s.T, s.T, rounding, [&](int64_t t, int64_t from) {
      return pairs.at(t, from) * steps.dt[from];
    });
    const auto plus_D = [&](const Matrix& sum, const Matrix& of) {
      return make(s.T, s.P, rounding,
                  [&](int64_t t, int64_t p) { return sum.at(t, p) + D * of.at(t, p); });
    };
    outputs.add("y", s.H, h, plus_D(product(M, x, rounding), x), rounding);
    outputs.add("dx", s.H, h, plus_D(product(transposed(M), dy, rounding), dy), rounding);
    const Matrix dM = product(dy, transposed(x), rounding);
    const Matrix dscores = make(s.T, s.T, rounding, [&](int64_t t, int64_t from) {
      return dM.at(t, from) * decay(t, from) * steps.dt[from];
    });
    outputs.add("dC", s.G, g, product(dscores, B, rounding), rounding);
    outputs.add("dB", s.G, g, product(transposed(dscores), C, rounding), rounding);
    outputs.add("ddt_raw", s.H, h, gradient_of_steps(steps, dM, pairs, M, rounding), rounding);
  }
  return outputs;
}

class SsdGpuError : public testing::TestWithParam<SsdErrorShape> {};

TEST_P(SsdGpuError, IsAtMostThatOfTheStraightforwardComputation) {
  check_errors(GetParam(), run_ssd, straightforward_ssd);
}
INSTANTIATE_TEST_SUITE_P(Shapes, SsdGpuError,
                         testing::Values(SsdErrorShape{300, 2, 1, 64, 128, 128, 200},
                                         SsdErrorShape{300, 4, 2, 64, 128, 256, 100}));

}  // namespace
}  // namespace sluice::test
