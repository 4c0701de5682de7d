// What the scan's kernels share: a token's step, tensors as kernels see them, and how rows are cut.
#pragma once

#include <cfloat>

#include "kernels/core/packs.h"
#include "kernels/core/row_blocks.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/selective_scan/selective_scan_cuda.h"

namespace sluice::cuda {

constexpr int kStates = int(kScanStates);
constexpr int kSpan = int(kScanSpan);

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

constexpr float kNoDelta = -INFINITY;  // a token's that changes nothing: its dt is 0

// dt = softplus(x) and its derivative.
struct ScanStep {
  float dt, slope;

  __device__ explicit ScanStep(float x) {
    const float e = exp2_approx(kLog2E * x);
    // log(1 + e), by its polynomial where 1 + e would round e off (relative error 1e-8).
    float series = fmaf(e, -0.09216756f, 0.181595551f);
    series = fmaf(e, series, -0.247756151f);
    series = fmaf(e, series, 0.333205997f);
    series = fmaf(e, series, -0.499997313f);
    series = fmaf(e, series, 0.999999991f);
    const float far = kLn2 * log2_approx(1 + e);  // always: a choice of two needs no branch
    const float logarithm = e < 0.25f ? e * series : far;
    const bool linear = x > 20;
    dt = linear ? x : logarithm;
    slope = linear ? 1 : e * reciprocal_approx(1 + e);
  }
};

// A tensor of rows. Rows are counted in 32 bits, so that an address is one multiplication.
template <class T>
struct ScanColumns {
  T* data = nullptr;
  int stride = 0;  // bytes

  ScanColumns() = default;
  template <class Void>
  ScanColumns(const BasicTensorView<Void>& view, int64_t first = 0)
      : data(view ? pointer<std::remove_const_t<T>>(view) + first : nullptr),
        stride(int(view.row_stride * int64_t(sizeof(T)))) {
    SLUICE_CHECK(view.row_stride * int64_t(sizeof(T)) <= INT32_MAX && view.rows() <= INT32_MAX,
                 "the scan's rows have at most 2^31 bytes, and there are at most 2^31 of them");
  }
  __device__ T* at(int row, int column = 0) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    const uint64_t offset = uint64_t(uint32_t(row)) * uint32_t(stride);
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(data) + offset) + column;
  }
  // The same from `column` on.
  __device__ ScanColumns from(int column) const {
    ScanColumns columns = *this;
    if (data != nullptr) columns.data += column;
    return columns;
  }
  __device__ explicit operator bool() const { return data != nullptr; }
};

// The tensors that kernels read, from `first_state` on, and how the work is cut.
template <class T>
struct ScanInput {
  ScanColumns<const T> u, delta, z, dy, B, C;
  ScanColumns<const float> A_log;
  const float* dt_bias = nullptr;
  const float* D = nullptr;
  ScanColumns<const int32_t> doc_begin;
  int batch, tokens, channels;
  int N;             // states of a channel
  int states;        // of them here
  bool wide;         // whether a thread's states move by 16 bytes
  int width;         // channels of a block
  int tiles;         // blocks of a piece
  RowBlocks pieces;  // of a row's spans

  template <class Args>
  ScanInput(const Args& args, int64_t first_state, int64_t width)
      : delta(args.delta),
        A_log(args.A_log, first_state),
        dt_bias(pointer<float>(args.dt_bias)),
        doc_begin(args.doc_begin),
        batch(int(args.delta.dim(0))),
        tokens(int(args.delta.dim(1))),
        channels(int(args.delta.dim(2))),
        N(int(args.A_log.dim(1))),
        states(int(std::min<int64_t>(kStates, N - first_state))),
        wide(N % kStates == 0),
        width(int(width)),
        tiles(int(ceil_div(channels, width))),
        pieces(scan_spans(tokens), scan_pieces(batch, tokens, channels)) {
    if constexpr (requires { args.u; }) u = ScanColumns<const T>(args.u);
    if constexpr (requires { args.z; }) z = ScanColumns<const T>(args.z);
    if constexpr (requires { args.dy; }) dy = ScanColumns<const T>(args.dy);
    if constexpr (requires { args.B; }) B = ScanColumns<const T>(args.B, first_state);
    if constexpr (requires { args.C; }) C = ScanColumns<const T>(args.C, first_state);
    if constexpr (requires { args.D; }) D = pointer<float>(args.D);
  }
  // Of B and C, by 8: whether they are there and begin at a multiple.
  bool has_wide_states(int64_t first_state) const {
    return states == kStates && first_state % 8 == 0;
  }
  // Threads move 16 bytes of these states, or one by one.
  void check_wide(const ConstTensorView& states_of_channels) {
    if (states_of_channels) wide = wide && aligned_rows(states_of_channels);
  }
  // Of blocks with `lanes` threads a channel.
  Grid grid(int lanes, size_t shared_bytes = 0) const {
    return {.blocks = unsigned(batch * pieces.count * tiles),
            .threads = unsigned(width * lanes),
            .shared_bytes = shared_bytes};
  }
};

// Pieces as maps, and the states (or, reversed, the gradients) that enter them, which take the
// place of maps.state.
template <class T>
void launch_folds(const Context& ctx, const SelectiveScanFold& args);
template <class T>
void launch_reverse_folds(const Context& ctx, const SelectiveScanReverseFold& args,
                          const TensorView& dt_sum);

struct ScanChain {
  ConstTensorView A_log = {};
  ConstTensorView doc_begin = {};
  ConstTensorView entering = {};  // (B, E, N): what enters the row; absent: zeros
  TensorView leaving = {};        // (B, E, N), optional
  TensorView dt_total = {};       // (B, E): over the row's last document; optional
  bool reverse = false;
};
void launch_chain(const Context& ctx, const ScanChain& chain, const ScanMaps& maps);

}  // namespace sluice::cuda
