#include "kernels/token_permute/token_permute_cpu.h"

#include <algorithm>

#include "kernels/core/dispatch.h"

namespace sluice::cpu {
namespace {

// taken[e] = entries of expert e in row b before this rank's tokens. With a capacity, those that
// were dropped count too: once there is no room, there is none for the rest of the row.
void start_row(const TokenIndex& args, int64_t b, int64_t* taken) {
  const int64_t X = args.offsets.numel() - 1;
  if (!args.before) {
    std::fill_n(taken, X, int64_t{0});
    return;
  }
  dispatch_float(args.before.dtype, [&]<class T>() {
    for (int64_t e = 0; e < X; ++e) taken[e] = int64_t(args.before.row<T>(b)[e]);
  });
}

// Calls entry(t, j, expert, kept) for every entry in order. Kept are the first `capacity` entries
// of an expert in each row of the batch.
template <class Entry>
void for_each_entry(const TokenIndex& args, int64_t* taken, Entry&& entry) {
  const int64_t tokens = args.experts.dim(1), k = args.experts.dim(2);
  for (int64_t t = 0; t < args.experts.rows(); ++t) {
    if (t % tokens == 0) start_row(args, t / tokens, taken);
    for (int64_t j = 0; j < k; ++j) {
      const int32_t expert = args.experts.row<int32_t>(t)[j];
      const bool kept = args.capacity == 0 || taken[expert] < args.capacity;
      if (kept) ++taken[expert];
      entry(t, j, expert, kept);
    }
  }
}

}  // namespace

// One thread: two passes over integers, little beside the rows that they move.
void token_index(const TokenIndex& args, TensorView cursor_view, TensorView taken_view) {
  const int64_t X = args.offsets.numel() - 1;
  int64_t* const cursor = cursor_view.as<int64_t>();
  int64_t* const taken = taken_view.as<int64_t>();
  int64_t* const offsets = args.offsets.as<int64_t>();
  std::fill_n(cursor, X, int64_t{0});
  for_each_entry(args, taken,
                 [&](int64_t, int64_t, int32_t expert, bool kept) { cursor[expert] += kept; });
  offsets[0] = 0;
  for (int64_t e = 0; e < X; ++e) {
    offsets[e + 1] = offsets[e] + cursor[e];
    if (args.kept) args.kept.as<int32_t>()[e] = int32_t(cursor[e]);
    cursor[e] = offsets[e];
  }
  for_each_entry(args, taken, [&](int64_t t, int64_t j, int32_t expert, bool kept) {
    args.slot.row<int32_t>(t)[j] = kept ? int32_t(cursor[expert]++) : -1;
  });
}

template <class T>
void token_permute_forward(const TokenPermuteForward& args) {
  const int64_t tokens = args.x.rows();
  const int64_t D = args.x.row_size();
  const int64_t k = args.slot.row_size();
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t* const slot = args.slot.row<int32_t>(t);
    for (int64_t j = 0; j < k; ++j) {
      if (slot[j] >= 0) std::copy_n(args.x.row<T>(t), D, args.rows.row<T>(slot[j]));
    }
  }
}

template <class T>
void token_permute_backward(const TokenPermuteBackward& args) {
  const int64_t tokens = args.dx.rows();
  const int64_t D = args.dx.row_size();
  const int64_t k = args.slot.row_size();
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t* const slot = args.slot.row<int32_t>(t);
    T* const dx = args.dx.row<T>(t);
    std::fill_n(dx, D, T(0));
    for (int64_t j = 0; j < k; ++j) {
      if (slot[j] < 0) continue;
      const T* const drow = args.drows.row<T>(slot[j]);
      for (int64_t i = 0; i < D; ++i) dx[i] += drow[i];
    }
  }
}

template <class T>
void token_unpermute_forward(const TokenUnpermuteForward& args) {
  const int64_t tokens = args.y.rows();
  const int64_t D = args.y.row_size();
  const int64_t k = args.slot.row_size();
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t* const slot = args.slot.row<int32_t>(t);
    const T* const weights = args.weights.row<T>(t);
    T* const y = args.y.row<T>(t);
    std::fill_n(y, D, T(0));
    for (int64_t j = 0; j < k; ++j) {
      if (slot[j] < 0) continue;
      const T* const row = args.rows.row<T>(slot[j]);
      for (int64_t i = 0; i < D; ++i) y[i] += weights[j] * row[i];
    }
  }
}

// Every row belongs to one entry, so drows may be rows: it is read before it is written.
template <class T>
void token_unpermute_backward(const TokenUnpermuteBackward& args) {
  const int64_t tokens = args.dy.rows();
  const int64_t D = args.dy.row_size();
  const int64_t k = args.slot.row_size();
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t* const slot = args.slot.row<int32_t>(t);
    const T* const weights = args.weights.row<T>(t);
    const T* const dy = args.dy.row<T>(t);
    T* const dweights = args.dweights.row<T>(t);
    for (int64_t j = 0; j < k; ++j) {
      dweights[j] = 0;
      if (slot[j] < 0) continue;
      const T* const row = args.rows.row<T>(slot[j]);
      T* const drow = args.drows.row<T>(slot[j]);
      double dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < D; ++i) dot += double(dy[i]) * double(row[i]);
      dweights[j] = T(dot);
      for (int64_t i = 0; i < D; ++i) drow[i] = weights[j] * dy[i];
    }
  }
}

template void token_permute_forward<float>(const TokenPermuteForward&);
template void token_permute_forward<double>(const TokenPermuteForward&);
template void token_permute_backward<float>(const TokenPermuteBackward&);
template void token_permute_backward<double>(const TokenPermuteBackward&);
template void token_unpermute_forward<float>(const TokenUnpermuteForward&);
template void token_unpermute_forward<double>(const TokenUnpermuteForward&);
template void token_unpermute_backward<float>(const TokenUnpermuteBackward&);
template void token_unpermute_backward<double>(const TokenUnpermuteBackward&);

}  // namespace sluice::cpu
