// B batch, M chunks of a row, H heads, P head dim, N state dim
#include "kernels/state_passing/state_passing_cpu.h"

#include <algorithm>
#include <vector>

namespace sluice::cpu {
namespace {

// The state in hand while a row's chunks are folded: P * N elements, one per thread.
template <class T>
T* carry_of(int64_t size, const T* start) {
  thread_local std::vector<T> carry;
  carry.assign(size, T(0));
  if (start != nullptr) std::copy_n(start, size, carry.data());
  return carry.data();
}

template <class T>
double dot(const T* a, const T* b, int64_t size) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += double(a[i]) * b[i];
  return sum;
}

}  // namespace

template <class T>
void state_passing_forward(const StatePassingForward& args) {
  const int64_t B = args.state.dim(0), M = args.state.dim(1), H = args.state.dim(2);
  const int64_t size = args.state.dim(3) * args.state.dim(4);
#pragma omp parallel for schedule(static)
  for (int64_t index = 0; index < B * H; ++index) {
    const int64_t b = index / H, h = index % H;
    T* const carry = carry_of(size, args.initial ? args.initial.row<T>(index) : nullptr);
    T total = 1;
    for (int64_t m = 0; m < M; ++m) {
      const T decay = args.decay.row<T>(b * M + m)[h];
      const T* const state = args.state.row<T>(b * M + m) + h * size;
      total *= decay;
      if (!args.incoming) {
        for (int64_t i = 0; i < size; ++i) carry[i] = decay * carry[i] + state[i];
        continue;
      }
      T* const incoming = args.incoming.row<T>(b * M + m) + h * size;
      for (int64_t i = 0; i < size; ++i) {
        const T outgoing = decay * carry[i] + state[i];  // read before incoming, its alias, changes
        incoming[i] = carry[i];
        carry[i] = outgoing;
      }
    }
    if (args.final_state) std::copy_n(carry, size, args.final_state.row<T>(index));
    if (args.total_decay) args.total_decay.row<T>(b)[h] = total;
  }
}

template <class T>
void state_passing_backward(const StatePassingBackward& args) {
  const int64_t B = args.dincoming.dim(0), M = args.dincoming.dim(1), H = args.dincoming.dim(2);
  const int64_t size = args.dincoming.dim(3) * args.dincoming.dim(4);
#pragma omp parallel for schedule(static)
  for (int64_t index = 0; index < B * H; ++index) {
    const int64_t b = index / H, h = index % H;
    T* const carry = carry_of(size, args.dfinal ? args.dfinal.row<T>(index) : nullptr);
    for (int64_t m = M - 1; m >= 0; --m) {
      const int64_t chunk = b * M + m;
      const T decay = args.decay.row<T>(chunk)[h];
      const T* const dincoming = args.dincoming.row<T>(chunk) + h * size;
      if (args.dlog_decay) {
        const T* const incoming = args.incoming.row<T>(chunk) + h * size;
        args.dlog_decay.row<T>(chunk)[h] = T(decay * dot(carry, incoming, size));
      }
      if (!args.doutgoing) {
        for (int64_t i = 0; i < size; ++i) carry[i] = dincoming[i] + decay * carry[i];
        continue;
      }
      T* const doutgoing = args.doutgoing.row<T>(chunk) + h * size;
      for (int64_t i = 0; i < size; ++i) {
        const T before = dincoming[i] + decay * carry[i];  // read before doutgoing, its alias
        doutgoing[i] = carry[i];
        carry[i] = before;
      }
    }
    if (args.dinitial) std::copy_n(carry, size, args.dinitial.row<T>(index));
  }
}

template void state_passing_forward<float>(const StatePassingForward&);
template void state_passing_forward<double>(const StatePassingForward&);
template void state_passing_backward<float>(const StatePassingBackward&);
template void state_passing_backward<double>(const StatePassingBackward&);

}  // namespace sluice::cpu
