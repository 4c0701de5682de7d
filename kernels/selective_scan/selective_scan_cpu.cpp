// B batch, T tokens, E channels, N state dim. In templates the element type is Real.
#include "kernels/selective_scan/selective_scan_cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace sluice::cpu {

namespace {

template <class Real>
Real sigmoid(Real x) {
  return Real(1) / (Real(1) + std::exp(-x));
}

template <class Real>
Real softplus(Real x) {
  return std::max(x, Real(0)) + std::log1p(std::exp(-std::abs(x)));
}

// The steps of one channel, and what they are multiplied with.
template <class Real>
struct Steps {
  int64_t e = 0;
  Real dt_bias = 0;
  std::vector<Real> A;  // (N)

  template <class Args>
  Steps(const Args& args, int64_t e)
      : e(e), dt_bias(args.dt_bias.template as<Real>()[e]), A(args.A_log.dim(1)) {
    for (size_t n = 0; n < A.size(); ++n) {
      A[n] = -std::exp(args.A_log.template row<Real>(e)[n]);
    }
  }
  template <class Args>
  Real dt(const Args& args, int64_t row) const {
    return softplus(args.delta.template row<Real>(row)[e] + dt_bias);
  }
};

// What one channel has in all its tokens.
template <class Real>
struct Channel : Steps<Real> {
  Real D = 0;

  template <class Args>
  Channel(const Args& args, int64_t e) : Steps<Real>(args, e), D(args.D.template as<Real>()[e]) {}
};

template <class Args>
bool starts_document(const Args& args, int64_t b, int64_t t) {
  return args.doc_begin.template row<int32_t>(b)[t] == t;
}

// h of token t from h of token t-1 (they may be the same array); returns sum_n C h + D u.
template <class Real, class Args>
Real advance(const Args& args, const Channel<Real>& channel, int64_t b, int64_t t,
             const Real* before, Real* h) {
  const int64_t row = b * args.u.dim(1) + t;
  const Real* const B = args.B.template row<Real>(row);
  const Real* const C = args.C.template row<Real>(row);
  const Real u = args.u.template row<Real>(row)[channel.e];
  const Real dt = channel.dt(args, row);
  const bool start = starts_document(args, b, t);
  Real sum = channel.D * u;
  for (size_t n = 0; n < channel.A.size(); ++n) {
    const Real carried = start ? Real(0) : std::exp(dt * channel.A[n]) * before[n];
    h[n] = carried + dt * u * B[n];
    sum += C[n] * h[n];
  }
  return sum;
}

template <class Real>
void forward_channel(const SelectiveScanForward& args, int64_t b, int64_t e) {
  const int64_t T = args.u.dim(1), E = args.u.dim(2), N = args.A_log.dim(1);
  const Channel<Real> channel(args, e);
  std::vector<Real> h(N, Real(0));
  if (args.initial_state) std::copy_n(args.initial_state.row<Real>(b * E + e), N, h.begin());
  for (int64_t t = 0; t < T; ++t) {
    if (args.span_states && t % kScanSpan == 0) {
      const int64_t span = b * scan_spans(T) + t / kScanSpan;
      std::copy_n(h.begin(), N, args.span_states.row<Real>(span) + e * N);
    }
    const Real sum = advance(args, channel, b, t, h.data(), h.data());
    const int64_t row = b * T + t;
    const Real z = args.z ? args.z.row<Real>(row)[e] : Real(0);
    args.y.row<Real>(row)[e] = args.z ? sum * z * sigmoid(z) : sum;
  }
  if (args.final_state) std::copy_n(h.begin(), N, args.final_state.row<Real>(b * E + e));
}

// The backward of one channel and row b: span by span from the end, the states of a span
// recomputed.
template <class Real>
class BackwardChannel {
 public:
  BackwardChannel(const SelectiveScanBackward& args, const ScanPartials& partials, int64_t b,
                  int64_t e)
      : args_(args),
        partials_(partials),
        b_(b),
        T_(args.u.dim(1)),
        N_(args.A_log.dim(1)),
        channel_(args, e),
        h_((kScanSpan + 1) * N_),
        carried_(N_, Real(0)),
        sums_(partials.parameters.row<Real>(b * args.u.dim(2) + e)) {}

  void run() {
    const int64_t state_row = b_ * args_.u.dim(2) + channel_.e;
    std::fill_n(sums_, N_ + 2, Real(0));
    if (args_.dfinal_state) {
      std::copy_n(args_.dfinal_state.row<Real>(state_row), N_, carried_.begin());
    }
    for (int64_t span = scan_spans(T_) - 1; span >= 0; --span) run_span(span);
    if (args_.dinitial_state) {
      std::copy_n(carried_.begin(), N_, args_.dinitial_state.row<Real>(state_row));
    }
  }

 private:
  void run_span(int64_t span) {
    const int64_t begin = span * kScanSpan, end = std::min(T_, begin + kScanSpan);
    const Real* const incoming = args_.span_states.row<Real>(b_ * scan_spans(T_) + span);
    std::copy_n(incoming + channel_.e * N_, N_, h_.begin());
    Real sums[kScanSpan];
    for (int64_t t = begin; t < end; ++t) {
      Real* const before = h_.data() + (t - begin) * N_;
      sums[t - begin] = advance(args_, channel_, b_, t, before, before + N_);
    }
    for (int64_t t = end - 1; t >= begin; --t) {
      walk_back(t, h_.data() + (t - begin) * N_, gate(t, sums[t - begin]));
    }
  }

  // Through y = sum * silu(z): writes dz and y, returns the gradient of the sum.
  Real gate(int64_t t, Real sum) {
    const int64_t row = b_ * T_ + t, e = channel_.e;
    const Real dy = args_.dy.row<Real>(row)[e];
    const Real z = args_.z ? args_.z.row<Real>(row)[e] : Real(0);
    const Real silu = args_.z ? z * sigmoid(z) : Real(1);
    if (args_.z) {
      args_.dz.row<Real>(row)[e] = dy * sum * sigmoid(z) * (1 + z * (1 - sigmoid(z)));
    }
    if (args_.y) args_.y.row<Real>(row)[e] = sum * silu;
    return dy * silu;
  }

  // before: h of token t-1, and h of token t after it. dsum: gradient of sum_n C h + D u.
  void walk_back(int64_t t, const Real* before, Real dsum) {
    const int64_t row = b_ * T_ + t, e = channel_.e;
    const int64_t partial_row = e / kScanBlock * args_.u.rows() + row;
    const Real* const B = args_.B.row<Real>(row);
    const Real* const C = args_.C.row<Real>(row);
    Real* const dB = partials_.dB.row<Real>(partial_row);
    Real* const dC = partials_.dC.row<Real>(partial_row);
    const Real u = args_.u.row<Real>(row)[e], dt = channel_.dt(args_, row);
    const Real slope = sigmoid(args_.delta.row<Real>(row)[e] + channel_.dt_bias);
    const bool start = starts_document(args_, b_, t);
    Real ddt = 0, dinput = 0;  // input: dt u
    for (int64_t n = 0; n < N_; ++n) {
      const Real dh = carried_[n] + C[n] * dsum;
      dC[n] += dsum * before[N_ + n];
      dB[n] += dh * dt * u;
      dinput += dh * B[n];
      carried_[n] = start ? Real(0) : std::exp(dt * channel_.A[n]) * dh;
      const Real dlog_a = start ? Real(0) : carried_[n] * before[n];  // of a = exp(dt A)
      ddt += dlog_a * channel_.A[n];
      sums_[n] += dlog_a * dt * channel_.A[n];
    }
    const Real ddelta = (ddt + u * dinput) * slope;
    args_.ddelta.row<Real>(row)[e] = ddelta;
    args_.du.row<Real>(row)[e] = dt * dinput + channel_.D * dsum;
    sums_[N_] += ddelta;
    sums_[N_ + 1] += dsum * u;
  }

  const SelectiveScanBackward& args_;
  const ScanPartials& partials_;
  int64_t b_, T_, N_;
  Channel<Real> channel_;
  std::vector<Real> h_;        // (kScanSpan + 1, N)
  std::vector<Real> carried_;  // (N): gradient of h[t-1] through h[t]
  Real* sums_;                 // (N + 2)
};

}  // namespace

template <class Real>
void selective_scan_forward(const SelectiveScanForward& args) {
  const int64_t B = args.u.dim(0), E = args.u.dim(2);
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t e = 0; e < E; ++e) forward_channel<Real>(args, b, e);
  }
}

template <class Real>
void selective_scan_backward(const SelectiveScanBackward& args, const ScanPartials& partials) {
  const int64_t B = args.u.dim(0), T = args.u.dim(1), E = args.u.dim(2), N = args.A_log.dim(1);
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t block = 0; block < scan_blocks(E); ++block) {
      const int64_t first_row = block * B * T + b * T;
      std::fill_n(partials.dB.row<Real>(first_row), T * N, Real(0));
      std::fill_n(partials.dC.row<Real>(first_row), T * N, Real(0));
      for (int64_t e = block * kScanBlock; e < std::min(E, (block + 1) * kScanBlock); ++e) {
        BackwardChannel<Real>(args, partials, b, e).run();
      }
    }
  }
}

template <class Real>
void reduce_scan_partials(const SelectiveScanBackward& args, const ScanPartials& partials) {
  const int64_t B = args.u.dim(0), E = args.u.dim(2), N = args.A_log.dim(1);
  const int64_t rows = args.u.rows();
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    Real* const dB = args.dB.row<Real>(row);
    Real* const dC = args.dC.row<Real>(row);
    std::fill_n(dB, N, Real(0)), std::fill_n(dC, N, Real(0));
    for (int64_t block = 0; block < scan_blocks(E); ++block) {
      const Real* const dB_part = partials.dB.row<Real>(block * rows + row);
      const Real* const dC_part = partials.dC.row<Real>(block * rows + row);
      for (int64_t n = 0; n < N; ++n) dB[n] += dB_part[n];
      for (int64_t n = 0; n < N; ++n) dC[n] += dC_part[n];
    }
  }
#pragma omp parallel for schedule(static)
  for (int64_t e = 0; e < E; ++e) {
    Real* const dA_log = args.dA_log.row<Real>(e);
    for (int64_t b = 0; b < B; ++b) {
      const Real* const part = partials.parameters.row<Real>(b * E + e);
      for (int64_t n = 0; n < N; ++n) dA_log[n] += part[n];
      args.ddt_bias.as<Real>()[e] += part[N];
      args.dD.as<Real>()[e] += part[N + 1];
    }
  }
}

template <class Real>
void selective_scan_fold(const SelectiveScanFold& args) {
  const int64_t B = args.u.dim(0), T = args.u.dim(1), E = args.u.dim(2), N = args.A_log.dim(1);
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t e = 0; e < E; ++e) {
      const Steps<Real> steps(args, e);
      Real* const h = args.state.row<Real>(b * E + e);
      std::fill_n(h, N, Real(0));
      double dt_sum = 0;
      for (int64_t t = last_document(args.doc_begin, b); t < T; ++t) {
        const int64_t row = b * T + t;
        const Real* const input = args.B.row<Real>(row);
        const Real dt = steps.dt(args, row), dt_u = dt * args.u.row<Real>(row)[e];
        for (int64_t n = 0; n < N; ++n) h[n] = std::exp(dt * steps.A[n]) * h[n] + dt_u * input[n];
        dt_sum += dt;
      }
      args.dt_sum.row<Real>(b)[e] = Real(dt_sum);
    }
  }
}

template <class Real>
void selective_scan_reverse_fold(const SelectiveScanReverseFold& args) {
  const int64_t B = args.dy.dim(0), T = args.dy.dim(1), E = args.dy.dim(2), N = args.A_log.dim(1);
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t e = 0; e < E; ++e) {
      const Steps<Real> steps(args, e);
      Real* const carried = args.dinitial_state.row<Real>(b * E + e);
      std::fill_n(carried, N, Real(0));
      for (int64_t t = first_start(args.doc_begin, b) - 1; t >= 0; --t) {
        const int64_t row = b * T + t;
        const Real* const output = args.C.row<Real>(row);
        const Real z = args.z ? args.z.row<Real>(row)[e] : Real(0);
        const Real dsum = args.dy.row<Real>(row)[e] * (args.z ? z * sigmoid(z) : Real(1));
        const Real dt = steps.dt(args, row);
        for (int64_t n = 0; n < N; ++n) {
          carried[n] = std::exp(dt * steps.A[n]) * (carried[n] + output[n] * dsum);
        }
      }
    }
  }
}

template <class Real>
void selective_scan_decay(const SelectiveScanDecay& args) {
  const int64_t B = args.doc_begin.dim(0), E = args.A_log.dim(0), N = args.A_log.dim(1);
  const int64_t R = args.decay.dim(0);
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t b = 0; b < B; ++b) {
      const bool reset = args.doc_begin.row<int32_t>(b)[args.cuts[r + 1] - 1] >= args.cuts[r];
      for (int64_t e = 0; e < E; ++e) {
        const Real dt_sum = args.dt_sum.row<Real>(r)[b * E + e];
        const Real* const A_log = args.A_log.row<Real>(e);
        Real* const decay = args.decay.row<Real>(r) + (b * E + e) * N;
        for (int64_t n = 0; n < N; ++n) {
          decay[n] = reset ? Real(0) : std::exp(-std::exp(A_log[n]) * dt_sum);
        }
      }
    }
  }
}

template <class Real>
void selective_scan_step(const SelectiveScanStep& args) {
  const int64_t B = args.u.dim(0), E = args.u.dim(1), N = args.A_log.dim(1);
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t e = 0; e < E; ++e) {
      const Real* const A_log = args.A_log.row<Real>(e);
      const Real* const input = args.B.row<Real>(b);
      const Real* const output = args.C.row<Real>(b);
      Real* const h = args.state.row<Real>(b * E + e);
      const Real u = args.u.row<Real>(b)[e];
      const Real dt = softplus(args.delta.row<Real>(b)[e] + args.dt_bias.as<Real>()[e]);
      Real sum = args.D.as<Real>()[e] * u;
      for (int64_t n = 0; n < N; ++n) {
        h[n] = std::exp(-dt * std::exp(A_log[n])) * h[n] + dt * u * input[n];
        sum += output[n] * h[n];
      }
      const Real z = args.z ? args.z.row<Real>(b)[e] : Real(0);
      args.y.row<Real>(b)[e] = args.z ? sum * z * sigmoid(z) : sum;
    }
  }
}

template void selective_scan_forward<float>(const SelectiveScanForward&);
template void selective_scan_forward<double>(const SelectiveScanForward&);
template void selective_scan_backward<float>(const SelectiveScanBackward&, const ScanPartials&);
template void selective_scan_backward<double>(const SelectiveScanBackward&, const ScanPartials&);
template void reduce_scan_partials<float>(const SelectiveScanBackward&, const ScanPartials&);
template void reduce_scan_partials<double>(const SelectiveScanBackward&, const ScanPartials&);
template void selective_scan_fold<float>(const SelectiveScanFold&);
template void selective_scan_fold<double>(const SelectiveScanFold&);
template void selective_scan_reverse_fold<float>(const SelectiveScanReverseFold&);
template void selective_scan_reverse_fold<double>(const SelectiveScanReverseFold&);
template void selective_scan_decay<float>(const SelectiveScanDecay&);
template void selective_scan_decay<double>(const SelectiveScanDecay&);
template void selective_scan_step<float>(const SelectiveScanStep&);
template void selective_scan_step<double>(const SelectiveScanStep&);

}  // namespace sluice::cpu
