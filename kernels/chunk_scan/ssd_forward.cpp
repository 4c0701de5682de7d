#include "kernels/chunk_scan/ssd_forward.h"

#include <algorithm>

#include "kernels/chunk_scan/chunk_scan.h"
#include "kernels/chunk_scan/ssd_forward_cuda.h"
#include "kernels/chunk_state/entering_states.h"
#include "kernels/core/device_memory.h"
#include "kernels/core/dispatch.h"
#include "kernels/core/plain_path.h"

namespace sluice {
namespace {

// On the device at hand; a plan made where there is none is for one that takes the shape.
bool fits(const Context& ctx, const SsdForward& args) {
  if (!ctx.device.is_cuda() || !cuda::ssd_forward_fits(args)) return false;
  if constexpr (kBuiltWithCuda) return num_cuda_devices() == 0 || cuda::ssd_forward_has_room();
  return true;
}

EnteringStates states_of(const SsdForward& args) {
  return {.x = args.x,
          .B = args.B,
          .dt = args.dt,
          .cum = args.cum,
          .doc_begin = args.doc_begin,
          .initial = args.initial,
          .find_initial = args.find_initial,
          .final_state = args.final_state,
          .chunk = args.chunk};
}

void expect_state(const Context& ctx, const SsdForward& args, const char* name,
                  const ConstTensorView& view) {
  const Dims state{args.x.dim(0), args.x.dim(2), args.x.dim(3), args.B.dim(3)};
  if (view) expect(name, view, state, DType::f32, ctx.device);
}

void one_by_one(const Context& ctx, const SsdForward& args, const ChunkScanForward& scan) {
  const auto [B, T, H, P] = args.x.shape<4>("x: (B, T, H, P)");
  const int64_t M = num_chunks(T, args.chunk), N = args.B.dim(3);
  const ArenaScope scope(*ctx.scratch);
  EnteringStates states = states_of(args);
  states.incoming = ctx.scratch->alloc({B, M, H, P, N}, args.x.dtype);
  states.decay = ctx.scratch->alloc({B, M, H}, stat_dtype(args.x.dtype));
  entering_states(ctx, states);
  ChunkScanForward with_states = scan;
  with_states.incoming = states.incoming;
  chunk_scan_forward(ctx, with_states);
}

// What the walk begins with, of the row or, side by side, of its runs; these leave the final state.
ConstTensorView begin_walk(const Context& ctx, const SsdForward& args) {
  const auto [B, T, H, P] = args.x.shape<4>("x: (B, T, H, P)");
  const cuda::WalkSchedule schedule = cuda::walk_schedule(args.x.dims, args.B.dim(2), args.chunk);
  if (schedule.runs > 1) {
    EnteringStates states = states_of(args);
    states.decay = ctx.scratch->alloc({B, num_chunks(T, args.chunk), H}, DType::f32);
    const TensorView begins = cuda::entering_runs(ctx, states, schedule.chunks).state;
    return begins.reshape({B * schedule.runs, H, P, args.B.dim(3)});
  }
  const ConstTensorView initial =
      !args.find_initial ? args.initial
                         : args.find_initial([&](const TensorView& added, const TensorView& decay) {
                             fold_states(ctx, states_of(args), added, decay);
                           });
  expect_state(ctx, args, "initial", initial);
  return initial;
}

}  // namespace

void ssd_forward(const Context& ctx, const SsdForward& args) {
  const ChunkScanForward scan{.x = args.x,
                              .B = args.B,
                              .C = args.C,
                              .dt = args.dt,
                              .cum = args.cum,
                              .D = args.D,
                              .doc_begin = args.doc_begin,
                              .y = args.y,
                              .chunk = args.chunk};
  check_chunk_scan_forward(ctx, scan);
  if (!fits(ctx, args)) return one_by_one(ctx, args, scan);
  expect_state(ctx, args, "final_state", args.final_state);
  const ArenaScope scope(*ctx.scratch);
  SsdForward walk = args;
  walk.initial = begin_walk(ctx, args);
  if (ctx.counting()) return;
  if constexpr (kBuiltWithCuda) return cuda::ssd_forward(ctx, walk);
  fail_no_cuda("ssd_forward");
}

std::string describe_ssd(Device device, DType dtype, const SsdSizes& s) {
  if (device.is_cpu() || dtype != DType::bf16) return "";
  // Beside P 64, N 128 and chunk 128. Plain: P 48 and 128, N 96; chunk 512; of states alone: chunk
  // 8. States first, then chunks: N 64; chunks 96 and 32.
  constexpr double kPlain = 37, kPlainToken = 0.12, kPlainStates = 32;
  constexpr double kHalfTheStates = 3.2, kUneven = 1.3, kShort = 2.2;
  const std::string what =
      concat("the SSD of head_dim ", s.P, ", state_dim ", s.N, " and chunk ", s.chunk, " runs");
  const std::string fast = "head_dim 64, state_dim 128 and chunks in multiples of 64";
  if (!cuda::tensor_cores_take(dtype, s.P, s.N, s.chunk))
    return on_plain_kernels(what, std::max(kPlain, kPlainToken * double(std::min(s.chunk, s.T))),
                            fast);
  if (!cuda::chunk_states_have_mma(dtype, s.P, s.N, s.chunk))
    return on_plain_kernels(what, kPlainStates, fast);
  if (cuda::walks_take(s.N, s.chunk, s.T)) return "";
  const double factor = s.N < 128 ? kHalfTheStates : s.chunk < cuda::kWalkTile ? kShort : kUneven;
  return concat(what, " in several kernels, ", times_as_long(factor),
                " as in the fused ones, which take ", fast);
}

}  // namespace sluice
