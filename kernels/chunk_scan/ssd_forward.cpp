#include "kernels/chunk_scan/ssd_forward.h"

#include "kernels/chunk_scan/chunk_scan.h"
#include "kernels/chunk_scan/ssd_forward_cuda.h"
#include "kernels/chunk_state/entering_states.h"
#include "kernels/core/device_memory.h"
#include "kernels/core/dispatch.h"

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
  const Dims state{args.x.dim(0), args.x.dim(2), args.x.dim(3), args.B.dim(3)};
  const auto expect_state = [&](const char* name, const ConstTensorView& view) {
    if (view) expect(name, view, state, DType::f32, ctx.device);
  };
  expect_state("final_state", args.final_state);
  SsdForward walk = args;
  if (args.find_initial)
    walk.initial = args.find_initial([&](const TensorView& added, const TensorView& decay) {
      fold_states(ctx, states_of(args), added, decay);
    });
  expect_state("initial", walk.initial);
  if (ctx.counting()) return;
  if constexpr (kBuiltWithCuda) return cuda::ssd_forward(ctx, walk);
  fail_no_cuda("ssd_forward");
}

}  // namespace sluice
