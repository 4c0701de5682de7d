// B batch, T tokens, H heads, Q chunk length, M chunks of a row
#include "kernels/chunk_cumsum/chunk_cumsum_cpu.h"

#include <cmath>

namespace sluice::cpu {
namespace {

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

double sigmoid(double x) {
  const double e = std::exp(-std::fabs(x));
  return (x >= 0 ? 1 : e) / (1 + e);
}

}  // namespace

template <class T>
void chunk_cumsum_forward(const ChunkCumsumForward& args) {
  const int64_t B = args.dt_raw.dim(0), tokens = args.dt_raw.dim(1), H = args.dt_raw.dim(2);
  const int64_t M = num_chunks(tokens, args.chunk);
  const T* const dt_bias = args.dt_bias.as<T>();
  const T* const A_log = args.A_log.as<T>();
#pragma omp parallel for schedule(static)
  for (int64_t index = 0; index < B * M; ++index) {
    const int64_t b = index / M;
    const ChunkSpan span(index % M, args.chunk, tokens);
    for (int64_t h = 0; h < H; ++h) {
      const double A = -std::exp(double(A_log[h]));
      double cum = 0;
      for (int64_t t = span.begin; t < span.end; ++t) {
        const int64_t row = b * tokens + t;
        if (args.doc_begin.row<int32_t>(b)[t] == t) cum = 0;
        const double soft = softplus(double(args.dt_raw.row<T>(row)[h]) + dt_bias[h]);
        const T dt = T(std::min(std::max(soft, args.dt_min), args.dt_max));
        cum += dt * A;
        args.dt.row<T>(row)[h] = dt;
        args.cum.row<T>(row)[h] = T(cum);
      }
    }
  }
}

template <class T>
void chunk_cumsum_backward(const ChunkCumsumBackward& args, TensorView partial) {
  const int64_t B = args.dt_raw.dim(0), tokens = args.dt_raw.dim(1), H = args.dt_raw.dim(2);
  const int64_t M = num_chunks(tokens, args.chunk);
  const T* const dt_bias = args.dt_bias.as<T>();
  const T* const A_log = args.A_log.as<T>();
#pragma omp parallel for schedule(static)
  for (int64_t index = 0; index < B * M; ++index) {
    const int64_t b = index / M;
    const ChunkSpan span(index % M, args.chunk, tokens);
    for (int64_t h = 0; h < H; ++h) {
      const double A = -std::exp(double(A_log[h]));
      double e = 0;  // the reverse cumulative sum of dcum within the document
      double ddt_bias = 0;
      double dA = 0;
      for (int64_t t = span.end - 1; t >= span.begin; --t) {
        const int64_t row = b * tokens + t;
        const double raw = double(args.dt_raw.row<T>(row)[h]) + dt_bias[h];
        const double soft = softplus(raw);
        const bool clamped = soft < args.dt_min || soft > args.dt_max;
        const T dt = T(std::min(std::max(soft, args.dt_min), args.dt_max));
        e += args.dcum.row<T>(row)[h];
        dA += dt * e;
        const double ddt = args.ddt.row<T>(row)[h] + A * e;
        const double ddt_raw = clamped ? 0 : ddt * sigmoid(raw);
        args.ddt_raw.row<T>(row)[h] = T(ddt_raw);
        ddt_bias += ddt_raw;
        if (args.doc_begin.row<int32_t>(b)[t] == t) e = 0;
      }
      partial.row<T>(index)[h] = T(ddt_bias);
      partial.row<T>(index)[H + h] = T(A * dA);
    }
  }
  T* const ddt_bias = args.ddt_bias.as<T>();
  T* const dA_log = args.dA_log.as<T>();
  for (int64_t h = 0; h < H; ++h) {
    double bias_sum = 0;
    double A_log_sum = 0;
    for (int64_t index = 0; index < B * M; ++index) {
      bias_sum += partial.row<T>(index)[h];
      A_log_sum += partial.row<T>(index)[H + h];
    }
    ddt_bias[h] += T(bias_sum);
    dA_log[h] += T(A_log_sum);
  }
}

template void chunk_cumsum_forward<float>(const ChunkCumsumForward&);
template void chunk_cumsum_forward<double>(const ChunkCumsumForward&);
template void chunk_cumsum_backward<float>(const ChunkCumsumBackward&, TensorView);
template void chunk_cumsum_backward<double>(const ChunkCumsumBackward&, TensorView);

}  // namespace sluice::cpu
