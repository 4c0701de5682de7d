// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
#include "kernels/chunk_state/chunk_state_cpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/chunks.h"

namespace sluice::cpu {
namespace {

// One chunk's and head's share; the pointers of tokens are at the head's (group's) columns.
template <class Real>
void head_backward(const ChunkStateBackward& args, int64_t b, int64_t m, int64_t h) {
  const int64_t tokens = args.x.dim(1), H = args.x.dim(2), P = args.x.dim(3);
  const int64_t G = args.B.dim(2), N = args.B.dim(3);
  const int64_t g = h * G / H;
  const ChunkSpan span(m, args.chunk, tokens);
  const int64_t last = b * tokens + span.end - 1;
  const int64_t chunk_row = b * num_chunks(tokens, args.chunk) + m;
  const int64_t begin = std::max<int64_t>(span.begin, args.doc_begin.row<int32_t>(b)[span.end - 1]);
  const Real* const dstate = args.dstate.row<Real>(chunk_row) + h * P * N;
  double dcum_last = args.dlog_decay.row<Real>(chunk_row)[h];
  for (int64_t s = begin; s < span.end; ++s) {
    const int64_t row = b * tokens + s;
    const Real* const x = args.x.row<Real>(row) + h * P;
    const Real* const B = args.B.row<Real>(row) + g * N;
    Real* const dx = args.dx.row<Real>(row) + h * P;
    Real* const dB = args.dB.row<Real>(row) + g * N;
    const Real dt = args.dt.row<Real>(row)[h];
    const Real decay = std::exp(args.cum.row<Real>(last)[h] - args.cum.row<Real>(row)[h]);
    double dot = 0;  // <dstate, x B^T>
    for (int64_t p = 0; p < P; ++p) {
      double dstate_B = 0;
      for (int64_t n = 0; n < N; ++n) {
        dstate_B += dstate[p * N + n] * B[n];
        dB[n] += decay * dt * dstate[p * N + n] * x[p];
      }
      dx[p] += Real(decay * dt * dstate_B);
      dot += dstate_B * x[p];
    }
    args.ddt.row<Real>(row)[h] += Real(decay * dot);
    if (row == last) continue;  // exp(0): no share, not even of rounding
    args.dcum.row<Real>(row)[h] -= Real(decay * dt * dot);
    dcum_last += decay * dt * dot;
  }
  args.dcum.row<Real>(last)[h] += Real(dcum_last);
}

}  // namespace

template <class Real>
void chunk_state_forward(const ChunkStateForward& args) {
  const int64_t batch = args.x.dim(0), tokens = args.x.dim(1), H = args.x.dim(2), P = args.x.dim(3);
  const int64_t G = args.B.dim(2), N = args.B.dim(3);
  const int64_t M = num_chunks(tokens, args.chunk);
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t chunk_row = 0; chunk_row < batch * M; ++chunk_row) {
    for (int64_t h = 0; h < H; ++h) {
      const ChunkSpan span(chunk_row % M, args.chunk, tokens);
      const int64_t first_row = chunk_row / M * tokens;
      const int64_t last = first_row + span.end - 1;
      const int64_t document = args.doc_begin.row<int32_t>(chunk_row / M)[span.end - 1];
      const Real cum_last = args.cum.row<Real>(last)[h];
      args.decay.row<Real>(chunk_row)[h] = document >= span.begin ? Real(0) : std::exp(cum_last);
      Real* const state = args.state.row<Real>(chunk_row) + h * P * N;
      std::fill_n(state, P * N, Real(0));
      for (int64_t s = std::max(span.begin, document); s < span.end; ++s) {
        const int64_t row = first_row + s;
        const Real* const x = args.x.row<Real>(row) + h * P;
        const Real* const B = args.B.row<Real>(row) + h * G / H * N;
        const Real weight =
            std::exp(cum_last - args.cum.row<Real>(row)[h]) * args.dt.row<Real>(row)[h];
        for (int64_t p = 0; p < P; ++p) {
          for (int64_t n = 0; n < N; ++n) state[p * N + n] += weight * x[p] * B[n];
        }
      }
    }
  }
}

// The heads of a group share dB: one task takes them in order.
template <class Real>
void chunk_state_backward(const ChunkStateBackward& args) {
  const int64_t M = num_chunks(args.x.dim(1), args.chunk);
  const int64_t chunks = args.x.dim(0) * M, H = args.x.dim(2), G = args.B.dim(2);
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t chunk_row = 0; chunk_row < chunks; ++chunk_row) {
    for (int64_t g = 0; g < G; ++g) {
      for (int64_t h = g * (H / G); h < (g + 1) * (H / G); ++h) {
        head_backward<Real>(args, chunk_row / M, chunk_row % M, h);
      }
    }
  }
}

template void chunk_state_forward<float>(const ChunkStateForward&);
template void chunk_state_forward<double>(const ChunkStateForward&);
template void chunk_state_backward<float>(const ChunkStateBackward&);
template void chunk_state_backward<double>(const ChunkStateBackward&);

}  // namespace sluice::cpu
