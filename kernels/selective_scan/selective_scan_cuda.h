// The CUDA side of selective_scan, as its dispatcher sees it. B batch, T tokens, E channels, N
// state dim. How work is cut is a function of the shape alone.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "kernels/selective_scan/selective_scan.h"

namespace sluice::cuda {

inline constexpr int64_t kScanStates = 16;       // of a channel; more take several passes
inline constexpr int64_t kScanProcessors = 132;  // of an H100: what work is cut for

// Whether all rows move by 16 bytes, if they are aligned to them.
constexpr bool scan_moves_packs(int64_t E, int64_t N) { return E % 8 == 0 && N == kScanStates; }
constexpr int64_t scan_state_blocks(int64_t N) { return (N + kScanStates - 1) / kScanStates; }

// Pieces into which the spans of a row are cut where rows and channels alone would leave most of
// the machine idle. The states that enter them then cost a pass of their own, so two warps a
// processor must do without.
constexpr int64_t scan_pieces(int64_t B, int64_t T, int64_t E) {
  const int64_t warps = std::max<int64_t>(1, B * ((E + 31) / 32));
  if (warps > 2 * kScanProcessors) return 1;
  const int64_t wanted = (8 * kScanProcessors + warps - 1) / warps;
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, scan_spans(T) / 2));
}

// Channels of a block of the forward and the backward, which has two threads a channel. Two blocks
// of the backward fill a processor; the width is the one that leaves the least of them idle.
constexpr int64_t scan_width(int64_t B, int64_t T, int64_t E) {
  constexpr int64_t kHeld = 2 * kScanProcessors;
  const auto load = [&](int64_t width) {
    const int64_t blocks = B * scan_pieces(B, T, E) * ((E + width - 1) / width);
    return (blocks + kHeld - 1) / kHeld * width;
  };
  return load(48) < load(64) ? 48 : 64;
}
constexpr int64_t scan_tiles(int64_t B, int64_t T, int64_t E) {
  const int64_t width = scan_width(B, T, E);
  return (E + width - 1) / width;
}

// The pieces of a row as maps of the state, then the states that enter them. Absent where a row is
// one piece.
struct ScanMaps {
  TensorView state = {};   // (B * pieces, E, N) f32
  TensorView dt_sum = {};  // (B * pieces, E) f32
};
// Sums over blocks of states, where there are several. Absent otherwise.
struct ScanSums {
  TensorView y = {};       // (B * T, E) f32: sum over n of C h
  TensorView dinput = {};  // (B * T, E) f32; only in the backward, as the next
  TensorView ddt = {};     // (B * T, E) f32
};
struct ScanPartials {
  TensorView dBC = {};         // (tiles, B * T, 2 * kScanStates) f32
  TensorView parameters = {};  // (B * pieces, kScanStates + 2, E) f32: dA_log, ddt_bias, dD
};

void selective_scan_forward(const Context& ctx, const SelectiveScanForward& args,
                            const ScanMaps& maps, const ScanSums& sums);
void selective_scan_backward(const Context& ctx, const SelectiveScanBackward& args,
                             const ScanMaps& maps, const ScanSums& sums,
                             const ScanPartials& partials);
void selective_scan_fold(const Context& ctx, const SelectiveScanFold& args, const ScanMaps& maps);
void selective_scan_reverse_fold(const Context& ctx, const SelectiveScanReverseFold& args,
                                 const ScanMaps& maps);
void selective_scan_decay(const Context& ctx, const SelectiveScanDecay& args);
void selective_scan_step(const Context& ctx, const SelectiveScanStep& args);

}  // namespace sluice::cuda
