#include "kernels/selective_scan/selective_scan.h"

#include <type_traits>

#include "kernels/core/dispatch.h"
#include "kernels/core/packs.h"
#include "kernels/core/plain_path.h"
#include "kernels/selective_scan/selective_scan_cpu.h"
#include "kernels/selective_scan/selective_scan_cuda.h"

namespace sluice {

namespace {

// What the forward and the backward read alike.
template <class Args>
void expect_inputs(const Context& ctx, const Args& args) {
  const auto [B, T, E] = args.u.template shape<3>("u: (B, T, E)");
  const auto [A_rows, N] = args.A_log.template shape<2>("A_log: (E, N)");
  const DType dtype = args.u.dtype;
  const DType stat = stat_dtype(dtype);
  SLUICE_CHECK(N >= 1, "A_log: (E, N) needs at least one state, got ", to_string(args.A_log.dims));
  expect("u", args.u, {B, T, E}, dtype, ctx.device);
  expect("delta", args.delta, {B, T, E}, dtype, ctx.device);
  expect("dt_bias", args.dt_bias, {E}, stat, ctx.device);
  expect("A_log", args.A_log, {E, N}, stat, ctx.device);
  expect("B", args.B, {B, T, N}, dtype, ctx.device);
  expect("C", args.C, {B, T, N}, dtype, ctx.device);
  expect("D", args.D, {E}, stat, ctx.device);
  expect("doc_begin", args.doc_begin, {B, T}, DType::i32, ctx.device);
  if (args.z) expect("z", args.z, {B, T, E}, dtype, ctx.device);
}

cuda::ScanMaps maps_of_pieces(const Context& ctx, int64_t B, int64_t T, int64_t E, int64_t N) {
  const int64_t maps = B * cuda::scan_pieces(B, T, E);
  if (maps == B) return {};
  return {.state = ctx.scratch->alloc({maps, E, N}, DType::f32),
          .dt_sum = ctx.scratch->alloc({maps, E}, DType::f32)};
}

void forward_on_gpu(const Context& ctx, const SelectiveScanForward& args) {
  const int64_t B = args.u.dim(0), T = args.u.dim(1), E = args.u.dim(2), N = args.A_log.dim(1);
  const ArenaScope scope(*ctx.scratch);
  const cuda::ScanMaps maps = maps_of_pieces(ctx, B, T, E, N);
  cuda::ScanSums sums;
  if (N > cuda::kScanStates) sums.y = ctx.scratch->alloc({B * T, E}, DType::f32);
  if (ctx.counting()) return;
  if constexpr (kBuiltWithCuda) return cuda::selective_scan_forward(ctx, args, maps, sums);
  fail_no_cuda("selective_scan_forward");
}

void backward_on_gpu(const Context& ctx, const SelectiveScanBackward& args) {
  const int64_t B = args.u.dim(0), T = args.u.dim(1), E = args.u.dim(2), N = args.A_log.dim(1);
  const ArenaScope scope(*ctx.scratch);
  Arena& scratch = *ctx.scratch;
  const cuda::ScanMaps maps = maps_of_pieces(ctx, B, T, E, N);
  const Dims sums_of_channel{B * cuda::scan_pieces(B, T, E), cuda::kScanStates + 2, E};
  const cuda::ScanPartials partials{
      .dBC = scratch.alloc({cuda::scan_tiles(B, T, E), B * T, 2 * cuda::kScanStates}, DType::f32),
      .parameters = scratch.alloc(sums_of_channel, DType::f32)};
  cuda::ScanSums sums;
  if (N > cuda::kScanStates) {
    sums = {.y = scratch.alloc({B * T, E}, DType::f32),
            .dinput = scratch.alloc({B * T, E}, DType::f32),
            .ddt = scratch.alloc({B * T, E}, DType::f32)};
  }
  if (ctx.counting()) return;
  if constexpr (kBuiltWithCuda)
    return cuda::selective_scan_backward(ctx, args, maps, sums, partials);
  fail_no_cuda("selective_scan_backward");
}

}  // namespace

void selective_scan_forward(const Context& ctx, const SelectiveScanForward& args) {
  expect_inputs(ctx, args);
  const int64_t B = args.u.dim(0), T = args.u.dim(1), E = args.u.dim(2), N = args.A_log.dim(1);
  const DType dtype = args.u.dtype;
  const DType stat = stat_dtype(dtype);
  expect("y", args.y, {B, T, E}, dtype, ctx.device);
  if (args.initial_state) expect("initial_state", args.initial_state, {B, E, N}, stat, ctx.device);
  if (args.span_states) {
    expect("span_states", args.span_states, {B, scan_spans(T), E, N}, stat, ctx.device);
  }
  if (args.final_state) expect("final_state", args.final_state, {B, E, N}, stat, ctx.device);
  if (ctx.device.is_cuda()) return forward_on_gpu(ctx, args);
  if (ctx.counting()) return;
  dispatch_float(dtype, [&]<class Real>() {
    if constexpr (std::is_same_v<Real, float>) {
      cpu::selective_scan_forward_simd(args);
    } else {
      cpu::selective_scan_forward<Real>(args);
    }
  });
}

void selective_scan_backward(const Context& ctx, const SelectiveScanBackward& args) {
  expect_inputs(ctx, args);
  const int64_t B = args.u.dim(0), T = args.u.dim(1), E = args.u.dim(2), N = args.A_log.dim(1);
  const DType dtype = args.u.dtype;
  const DType stat = stat_dtype(dtype);
  SLUICE_CHECK(bool(args.z) == bool(args.dz), "dz is given exactly when z is");
  expect("dy", args.dy, {B, T, E}, dtype, ctx.device);
  expect("span_states", args.span_states, {B, scan_spans(T), E, N}, stat, ctx.device);
  if (args.dfinal_state) expect("dfinal_state", args.dfinal_state, {B, E, N}, stat, ctx.device);
  expect("du", args.du, {B, T, E}, dtype, ctx.device);
  expect("ddelta", args.ddelta, {B, T, E}, dtype, ctx.device);
  expect("dB", args.dB, {B, T, N}, dtype, ctx.device);
  expect("dC", args.dC, {B, T, N}, dtype, ctx.device);
  if (args.dz) expect("dz", args.dz, {B, T, E}, dtype, ctx.device);
  if (args.y) expect("y", args.y, {B, T, E}, dtype, ctx.device);
  expect("ddt_bias", args.ddt_bias, {E}, stat, ctx.device);
  expect("dA_log", args.dA_log, {E, N}, stat, ctx.device);
  expect("dD", args.dD, {E}, stat, ctx.device);
  if (args.dinitial_state) {
    expect("dinitial_state", args.dinitial_state, {B, E, N}, stat, ctx.device);
  }
  if (ctx.device.is_cuda()) return backward_on_gpu(ctx, args);
  const ArenaScope scope(*ctx.scratch);
  const Dims by_block{cpu::scan_blocks(E), B * T, N};
  const cpu::ScanPartials partials{.dB = ctx.scratch->alloc(by_block, stat),
                                   .dC = ctx.scratch->alloc(by_block, stat),
                                   .parameters = ctx.scratch->alloc({B, E, N + 2}, stat)};
  if (ctx.counting()) return;
  dispatch_float(dtype, [&]<class Real>() {
    if constexpr (std::is_same_v<Real, float>) {
      cpu::selective_scan_backward_simd(args, partials);
    } else {
      cpu::selective_scan_backward<Real>(args, partials);
    }
    cpu::reduce_scan_partials<Real>(args, partials);
  });
}

void selective_scan_fold(const Context& ctx, const SelectiveScanFold& args) {
  const auto [B, T, E] = args.u.shape<3>("u: (B, T, E)");
  const int64_t N = args.A_log.shape<2>("A_log: (E, N)")[1];
  const DType dtype = args.u.dtype;
  const DType stat = stat_dtype(dtype);
  SLUICE_CHECK(T >= 1, "u: (B, T, E) needs at least one token, got ", to_string(args.u.dims));
  expect("u", args.u, {B, T, E}, dtype, ctx.device);
  expect("delta", args.delta, {B, T, E}, dtype, ctx.device);
  expect("dt_bias", args.dt_bias, {E}, stat, ctx.device);
  expect("A_log", args.A_log, {E, N}, stat, ctx.device);
  expect("B", args.B, {B, T, N}, dtype, ctx.device);
  expect("doc_begin", args.doc_begin, {B, T}, DType::i32, ctx.device);
  expect("state", args.state, {B, E, N}, stat, ctx.device);
  expect("dt_sum", args.dt_sum, {B, E}, stat, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const cuda::ScanMaps maps =
      ctx.device.is_cuda() ? maps_of_pieces(ctx, B, T, E, N) : cuda::ScanMaps();
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::selective_scan_fold(ctx, args, maps);
    fail_no_cuda("selective_scan_fold");
  }
  if (dtype == DType::f32) return cpu::selective_scan_fold_simd(args);
  dispatch_float(dtype, [&]<class Real>() { cpu::selective_scan_fold<Real>(args); });
}

void selective_scan_reverse_fold(const Context& ctx, const SelectiveScanReverseFold& args) {
  const auto [B, T, E] = args.dy.shape<3>("dy: (B, T, E)");
  const int64_t N = args.A_log.shape<2>("A_log: (E, N)")[1];
  const DType dtype = args.dy.dtype;
  const DType stat = stat_dtype(dtype);
  expect("dy", args.dy, {B, T, E}, dtype, ctx.device);
  expect("delta", args.delta, {B, T, E}, dtype, ctx.device);
  expect("dt_bias", args.dt_bias, {E}, stat, ctx.device);
  expect("A_log", args.A_log, {E, N}, stat, ctx.device);
  expect("C", args.C, {B, T, N}, dtype, ctx.device);
  if (args.z) expect("z", args.z, {B, T, E}, dtype, ctx.device);
  expect("doc_begin", args.doc_begin, {B, T}, DType::i32, ctx.device);
  expect("dinitial_state", args.dinitial_state, {B, E, N}, stat, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const cuda::ScanMaps maps =
      ctx.device.is_cuda() ? maps_of_pieces(ctx, B, T, E, N) : cuda::ScanMaps();
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::selective_scan_reverse_fold(ctx, args, maps);
    fail_no_cuda("selective_scan_reverse_fold");
  }
  if (dtype == DType::f32) return cpu::selective_scan_reverse_fold_simd(args);
  dispatch_float(dtype, [&]<class Real>() { cpu::selective_scan_reverse_fold<Real>(args); });
}

void selective_scan_decay(const Context& ctx, const SelectiveScanDecay& args) {
  const auto [E, N] = args.A_log.shape<2>("A_log: (E, N)");
  const auto [B, tokens] = args.doc_begin.shape<2>("doc_begin: (B, row_tokens)");
  const int64_t R = int64_t(args.cuts.size()) - 1;
  const DType stat = args.dt_sum.dtype;
  SLUICE_CHECK(R >= 1 && args.cuts.front() >= 0 && args.cuts.back() <= tokens,
               "cuts are those of spans within rows of ", tokens, " tokens");
  expect("dt_sum", args.dt_sum, {R, B * E}, stat, ctx.device);
  expect("A_log", args.A_log, {E, N}, stat, ctx.device);
  expect("doc_begin", args.doc_begin, {B, tokens}, DType::i32, ctx.device);
  expect("decay", args.decay, {R, B * E * N}, stat, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::selective_scan_decay(ctx, args);
    fail_no_cuda("selective_scan_decay");
  }
  dispatch_float(stat, [&]<class Real>() { cpu::selective_scan_decay<Real>(args); });
}

void selective_scan_step(const Context& ctx, const SelectiveScanStep& args) {
  const auto [B, E] = args.u.shape<2>("u: (B, E)");
  const auto [A_rows, N] = args.A_log.shape<2>("A_log: (E, N)");
  const DType dtype = args.u.dtype;
  const DType stat = stat_dtype(dtype);
  expect("u", args.u, {B, E}, dtype, ctx.device);
  expect("delta", args.delta, {B, E}, dtype, ctx.device);
  expect("dt_bias", args.dt_bias, {E}, stat, ctx.device);
  expect("A_log", args.A_log, {E, N}, stat, ctx.device);
  expect("B", args.B, {B, N}, dtype, ctx.device);
  expect("C", args.C, {B, N}, dtype, ctx.device);
  expect("D", args.D, {E}, stat, ctx.device);
  if (args.z) expect("z", args.z, {B, E}, dtype, ctx.device);
  expect("state", args.state, {B, E, N}, stat, ctx.device);
  expect("y", args.y, {B, E}, dtype, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::selective_scan_step(ctx, args);
    fail_no_cuda("selective_scan_step");
  }
  dispatch_float(dtype, [&]<class Real>() { cpu::selective_scan_step<Real>(args); });
}

std::string describe_scan(Device device, DType dtype, int64_t E, int64_t N, int64_t first) {
  if (device.is_cpu()) return "";
  // Of 24 to 128 states beside 16, a pass; of 8 and 12 states in one pass; of E 4100 beside 4096.
  constexpr double kPass = 1.5, kFewStates = 1.1, kPlain = 1.6;
  const int64_t passes = cuda::scan_state_blocks(N);
  if (passes > 1) {
    return concat("state_dim ", N, " is scanned in ", passes, " passes, ",
                  times_as_long(kPass * double(passes)), " as ", cuda::kScanStates,
                  " states in one");
  }
  if (dtype != DType::bf16) return "";
  const bool packs = whole_packs({E, first}, dtype);
  if (packs && cuda::scan_moves_packs(E, N)) return "";
  return on_plain_kernels(concat("the scan of ", E, " channels and state_dim ", N, " runs"),
                          packs ? kFewStates : kPlain,
                          concat("multiples of 8 channels and state_dim ", cuda::kScanStates));
}

}  // namespace sluice
