#include "kernels/chunk_scan/ssd_backward.h"

#include "kernels/chunk_scan/chunk_scan.h"
#include "kernels/chunk_scan/ssd_backward_cuda.h"
#include "kernels/chunk_state/chunk_state.h"
#include "kernels/core/device_memory.h"
#include "kernels/core/dispatch.h"
#include "kernels/state_passing/state_passing.h"

namespace sluice {
namespace {

// Whether tensor cores take the shape, on the device at hand; a plan made where there is none is
// for one that does.
bool fits(const Context& ctx, const SsdBackward& args) {
  if (!ctx.device.is_cuda() || !cuda::ssd_backward_fits(args)) return false;
  if constexpr (kBuiltWithCuda) return num_cuda_devices() == 0 || cuda::ssd_backward_has_room();
  return true;
}

cuda::SsdScratch allocate(const Context& ctx, const SsdBackward& args) {
  Arena& scratch = *ctx.scratch;
  const cuda::SsdSplits splits(args);
  const auto by_chunk = [&] { return cuda::allocate_by_chunk(ctx, args.x.dims, args.chunk); };
  cuda::SsdScratch all{.doutgoing = scratch.alloc(args.incoming.dims, args.x.dtype),
                       .leaving = by_chunk(),
                       .entering = by_chunk(),
                       .leaving_dots = by_chunk(),
                       .entering_dots = by_chunk(),
                       .state_dots = scratch.alloc(args.decay.dims, DType::f32)};
  const int64_t chunks = args.incoming.rows(), H = args.x.dim(2);
  all.partials.dD = scratch.alloc({chunks, H}, DType::f32);
  if (splits.has_parts()) {
    const Dims parts{splits.pairs + splits.states, args.x.rows(), args.B.dim(2) * args.B.dim(3)};
    all.partials.dB = scratch.alloc(parts, DType::f32);
    all.partials.dC = scratch.alloc(parts, DType::f32);
  }
  return all;
}

ChunkScanBackward scan_of(const SsdBackward& args, const TensorView& dincoming) {
  return {.dy = args.dy,
          .x = args.x,
          .B = args.B,
          .C = args.C,
          .dt = args.dt,
          .cum = args.cum,
          .D = args.D,
          .doc_begin = args.doc_begin,
          .incoming = args.incoming,
          .dx = args.dx,
          .dB = args.dB,
          .dC = args.dC,
          .ddt = args.ddt,
          .dcum = args.dcum,
          .dincoming = dincoming,
          .dD = args.dD,
          .chunk = args.chunk};
}

ConstTensorView dfinal_of(const Context& ctx, const SsdBackward& args, const GradientFold& fold) {
  const ConstTensorView dfinal = args.find_dfinal ? args.find_dfinal(fold) : args.dfinal;
  const Dims state{args.x.dim(0), args.x.dim(2), args.x.dim(3), args.B.dim(3)};
  if (dfinal) expect("dfinal", dfinal, state, stat_dtype(args.x.dtype), ctx.device);
  return dfinal;
}

void one_by_one(const Context& ctx, const SsdBackward& args) {
  const DType statistics = stat_dtype(args.x.dtype);
  const ArenaScope scope(*ctx.scratch);
  const TensorView dincoming = ctx.scratch->alloc(args.incoming.dims, statistics);
  const TensorView dlog_decay = ctx.scratch->alloc(args.decay.dims, statistics);
  const TensorView doutgoing =
      args.x.dtype == statistics ? dincoming : ctx.scratch->alloc(args.incoming.dims, args.x.dtype);
  chunk_scan_backward(ctx, scan_of(args, dincoming));
  const ConstTensorView dfinal = dfinal_of(ctx, args, [&](const TensorView& dinitial) {
    state_passing_backward(ctx,
                           {.dincoming = dincoming, .decay = args.decay, .dinitial = dinitial});
  });
  state_passing_backward(ctx, {.dincoming = dincoming,
                               .incoming = args.incoming,
                               .decay = args.decay,
                               .dfinal = dfinal,
                               .doutgoing = doutgoing,
                               .dlog_decay = dlog_decay});
  chunk_state_backward(ctx, {.dstate = doutgoing,
                             .dlog_decay = dlog_decay,
                             .x = args.x,
                             .B = args.B,
                             .dt = args.dt,
                             .cum = args.cum,
                             .doc_begin = args.doc_begin,
                             .dx = args.dx,
                             .dB = args.dB,
                             .ddt = args.ddt,
                             .dcum = args.dcum,
                             .chunk = args.chunk});
}

cuda::RunSchedule schedule_of(const SsdBackward& args) {
  return {args.x.dims, args.B.dim(3), args.chunk};
}

// What runs of chunks give to the gradients of the states before them.
cuda::ChunkRuns fold_runs(const Context& ctx, const SsdBackward& args,
                          const cuda::SsdScratch& scratch) {
  cuda::ChunkWalk walk = cuda::reverse_walk(args, scratch);
  walk.runs =
      cuda::allocate_runs(ctx, args.x.dims, args.B.dim(3), args.chunk, schedule_of(args).chunks);
  if constexpr (kBuiltWithCuda) {
    if (!ctx.counting()) cuda::walk_chunks_mma(ctx, walk);
  }
  return walk.runs;
}

void add_up(const Context& ctx, const cuda::ChunkRuns& runs, const TensorView& dinitial) {
  state_passing_backward(ctx, {.dincoming = runs.state, .decay = runs.decay, .dinitial = dinitial});
}

// What the walk over gradients begins with: for the row, or for each of its runs.
void begin_walk(const Context& ctx, SsdBackward& args, cuda::SsdScratch& scratch) {
  const cuda::RunSchedule schedule = schedule_of(args);
  if (schedule.gains || (args.find_dfinal && schedule.count > 1)) {
    const cuda::ChunkRuns runs = scratch.runs = fold_runs(ctx, args, scratch);
    args.dfinal =
        dfinal_of(ctx, args, [&](const TensorView& dinitial) { add_up(ctx, runs, dinitial); });
    state_passing_backward(ctx, {.dincoming = runs.state,
                                 .decay = runs.decay,
                                 .dfinal = args.dfinal,
                                 .doutgoing = runs.state});
  } else {
    args.dfinal = dfinal_of(ctx, args, [&](const TensorView& dinitial) {
      const ArenaScope scope(*ctx.scratch);
      add_up(ctx, fold_runs(ctx, args, scratch), dinitial);
    });
  }
}

}  // namespace

void ssd_backward(const Context& ctx, const SsdBackward& args) {
  check_chunk_scan_backward(ctx, scan_of(args, {}));
  expect("decay", args.decay, {args.x.dim(0), args.incoming.dim(1), args.x.dim(2)},
         stat_dtype(args.x.dtype), ctx.device);
  if (!fits(ctx, args)) return one_by_one(ctx, args);
  const ArenaScope scope(*ctx.scratch);
  cuda::SsdScratch scratch = allocate(ctx, args);
  if constexpr (kBuiltWithCuda) {
    if (!ctx.counting()) cuda::ssd_backward_weights(ctx, args, scratch);
  }
  SsdBackward known = args;
  begin_walk(ctx, known, scratch);
  if (ctx.counting()) return;
  if constexpr (kBuiltWithCuda) return cuda::ssd_backward(ctx, known, scratch);
  fail_no_cuda("ssd_backward");
}

}  // namespace sluice
