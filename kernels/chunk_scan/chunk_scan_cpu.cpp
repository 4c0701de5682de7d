// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
#include "kernels/chunk_scan/chunk_scan_cpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/chunks.h"

namespace sluice::cpu {
namespace {

template <class Real>
double dot(const Real* a, const Real* b, int64_t size) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += double(a[i]) * b[i];
  return sum;
}

// out += factor * in
template <class Real>
void add_scaled(double factor, const Real* in, int64_t size, Real* out) {
  for (int64_t i = 0; i < size; ++i) out[i] += Real(factor) * in[i];
}

// Where the columns of one head (and its group) of one row of the batch lie.
template <class Real, class Args>
struct Head {
  const Args& args;
  int64_t h, g, P, N;

  Head(const Args& args, int64_t h)
      : args(args),
        h(h),
        g(h * args.B.dim(2) / args.x.dim(2)),
        P(args.x.dim(3)),
        N(args.B.dim(3)) {}
  const Real* x(int64_t row) const { return args.x.template row<Real>(row) + h * P; }
  const Real* B(int64_t row) const { return args.B.template row<Real>(row) + g * N; }
  const Real* C(int64_t row) const { return args.C.template row<Real>(row) + g * N; }
  Real dt(int64_t row) const { return args.dt.template row<Real>(row)[h]; }
  Real cum(int64_t row) const { return args.cum.template row<Real>(row)[h]; }
};

template <class Real>
void head_forward(const ChunkScanForward& args, int64_t chunk_row, int64_t h) {
  const Head<Real, ChunkScanForward> head(args, h);
  const int64_t tokens = args.x.dim(1), M = args.incoming.dim(1), P = head.P, N = head.N;
  const ChunkSpan span(chunk_row % M, args.chunk, tokens);
  const int64_t row0 = chunk_row / M * tokens;
  const int32_t* const doc_begin = args.doc_begin.row<int32_t>(chunk_row / M);
  const Real* const incoming = args.incoming.row<Real>(chunk_row) + h * P * N;
  for (int64_t t = span.begin; t < span.end; ++t) {
    const int64_t document = doc_begin[t];
    const Real* const C = head.C(row0 + t);
    Real* const y = args.y.row<Real>(row0 + t) + h * P;
    for (int64_t p = 0; p < P; ++p) y[p] = args.D.as<Real>()[h] * head.x(row0 + t)[p];
    if (document < span.begin) {
      const Real decay = std::exp(head.cum(row0 + t));
      for (int64_t p = 0; p < P; ++p) y[p] += Real(decay * dot(incoming + p * N, C, N));
    }
    for (int64_t s = std::max(span.begin, document); s <= t; ++s) {
      const Real decay = std::exp(head.cum(row0 + t) - head.cum(row0 + s));
      const double score = dot(C, head.B(row0 + s), N);
      add_scaled(score * decay * head.dt(row0 + s), head.x(row0 + s), P, y);
    }
  }
}

// dB and dC are the group's: the caller takes its heads in order.
template <class Real>
void head_backward(const ChunkScanBackward& args, int64_t chunk_row, int64_t h, Real* partial_dD) {
  const Head<Real, ChunkScanBackward> head(args, h);
  const int64_t tokens = args.x.dim(1), M = args.incoming.dim(1), P = head.P, N = head.N;
  const ChunkSpan span(chunk_row % M, args.chunk, tokens);
  const int64_t row0 = chunk_row / M * tokens;
  const int32_t* const doc_begin = args.doc_begin.row<int32_t>(chunk_row / M);
  const Real* const incoming = args.incoming.row<Real>(chunk_row) + h * P * N;
  Real* const dincoming = args.dincoming.row<Real>(chunk_row) + h * P * N;
  std::fill_n(dincoming, P * N, Real(0));
  const auto dx = [&](int64_t t) { return args.dx.row<Real>(row0 + t) + h * P; };
  const auto dB = [&](int64_t t) { return args.dB.row<Real>(row0 + t) + head.g * N; };
  const auto dC = [&](int64_t t) { return args.dC.row<Real>(row0 + t) + head.g * N; };
  const auto ddt = [&](int64_t t) -> Real& { return args.ddt.row<Real>(row0 + t)[h]; };
  const auto dcum = [&](int64_t t) -> Real& { return args.dcum.row<Real>(row0 + t)[h]; };
  double dD = 0;
  for (int64_t t = span.begin; t < span.end; ++t) {
    const int64_t document = doc_begin[t];
    const Real* const dy = args.dy.row<Real>(row0 + t) + h * P;
    const Real* const C = head.C(row0 + t);
    for (int64_t p = 0; p < P; ++p) dx(t)[p] = args.D.as<Real>()[h] * dy[p];
    dD += dot(dy, head.x(row0 + t), P);
    ddt(t) = dcum(t) = 0;
    if (document < span.begin) {
      const double decay = std::exp(head.cum(row0 + t));
      for (int64_t p = 0; p < P; ++p) {
        dcum(t) += Real(decay * dy[p] * dot(incoming + p * N, C, N));
        add_scaled(decay * dy[p], incoming + p * N, N, dC(t));
        add_scaled(decay * dy[p], C, N, dincoming + p * N);
      }
    }
    for (int64_t s = std::max(span.begin, document); s <= t; ++s) {
      const Real* const B = head.B(row0 + s);
      const double decay = std::exp(head.cum(row0 + t) - head.cum(row0 + s));
      const double dt = head.dt(row0 + s);
      const double score = dot(C, B, N);
      const double dy_x = dot(dy, head.x(row0 + s), P);
      add_scaled(score * decay * dt, dy, P, dx(s));
      add_scaled(dy_x * decay * dt, B, N, dC(t));
      add_scaled(dy_x * decay * dt, C, N, dB(s));
      ddt(s) += Real(score * decay * dy_x);
      if (s == t) continue;  // exp(0): no share, not even of rounding
      dcum(t) += Real(score * decay * dt * dy_x);
      dcum(s) -= Real(score * decay * dt * dy_x);
    }
  }
  *partial_dD = Real(dD);
}

}  // namespace

template <class Real>
void chunk_scan_forward(const ChunkScanForward& args) {
  const int64_t chunks = args.incoming.rows(), H = args.x.dim(2);
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t chunk_row = 0; chunk_row < chunks; ++chunk_row) {
    for (int64_t h = 0; h < H; ++h) head_forward<Real>(args, chunk_row, h);
  }
}

template <class Real>
void chunk_scan_backward(const ChunkScanBackward& args, TensorView partial_dD) {
  const int64_t tokens = args.x.dim(1), M = args.incoming.dim(1), chunks = args.incoming.rows();
  const int64_t H = args.x.dim(2), G = args.B.dim(2), N = args.B.dim(3);
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t chunk_row = 0; chunk_row < chunks; ++chunk_row) {
    for (int64_t g = 0; g < G; ++g) {
      const ChunkSpan span(chunk_row % M, args.chunk, tokens);
      for (int64_t t = span.begin; t < span.end; ++t) {
        const int64_t row = chunk_row / M * tokens + t;
        std::fill_n(args.dB.row<Real>(row) + g * N, N, Real(0));
        std::fill_n(args.dC.row<Real>(row) + g * N, N, Real(0));
      }
      for (int64_t h = g * (H / G); h < (g + 1) * (H / G); ++h) {
        head_backward<Real>(args, chunk_row, h, partial_dD.row<Real>(chunk_row) + h);
      }
    }
  }
  Real* const dD = args.dD.as<Real>();
  for (int64_t h = 0; h < H; ++h) {
    double sum = 0;
    for (int64_t chunk_row = 0; chunk_row < chunks; ++chunk_row) {
      sum += partial_dD.row<Real>(chunk_row)[h];
    }
    dD[h] += Real(sum);
  }
}

template void chunk_scan_forward<float>(const ChunkScanForward&);
template void chunk_scan_forward<double>(const ChunkScanForward&);
template void chunk_scan_backward<float>(const ChunkScanBackward&, TensorView);
template void chunk_scan_backward<double>(const ChunkScanBackward&, TensorView);

}  // namespace sluice::cpu
