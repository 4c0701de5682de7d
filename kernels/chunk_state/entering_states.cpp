#include "kernels/chunk_state/entering_states.h"

#include "kernels/chunk_state/chunk_state.h"
#include "kernels/chunk_state/chunk_state_cuda.h"
#include "kernels/core/chunks.h"
#include "kernels/core/dispatch.h"
#include "kernels/state_passing/state_passing.h"

namespace sluice {
namespace {

ChunkStateForward chunks_of(const EnteringStates& args, const TensorView& state) {
  return {.x = args.x,
          .B = args.B,
          .dt = args.dt,
          .cum = args.cum,
          .doc_begin = args.doc_begin,
          .state = state,
          .decay = args.decay,
          .chunk = args.chunk};
}

// From states that chunks, or runs of chunks, add.
void fold_added(const Context& ctx, const TensorView& added, const TensorView& decays,
                const TensorView& state, const TensorView& decay) {
  state_passing_forward(ctx, {.state = added,
                              .decay = decays,
                              .final_state = state,
                              .total_decay = decay.reshape({added.dim(0), added.dim(2)})});
}

ConstTensorView initial_of(const Context& ctx, const EnteringStates& args, const StateFold& fold) {
  const ConstTensorView initial = args.find_initial ? args.find_initial(fold) : args.initial;
  const Dims state{args.x.dim(0), args.x.dim(2), args.x.dim(3), args.B.dim(3)};
  if (initial) expect("initial", initial, state, stat_dtype(args.x.dtype), ctx.device);
  return initial;
}

cuda::ChunkWalk walk_of(const EnteringStates& args, const TensorView& weights) {
  return {.name = "entering_states",
          .x = args.x,
          .B = args.B,
          .weights = weights,
          .decay = args.decay,
          .chunk = args.chunk};
}

void run_walk(const Context& ctx, const cuda::ChunkWalk& walk) {
  if constexpr (kBuiltWithCuda) {
    if (!ctx.counting()) cuda::walk_chunks_mma(ctx, walk);
  }
}

// The weights of tokens on tensor cores, in scratch; args.decay is written too.
TensorView find_weights(const Context& ctx, const EnteringStates& args) {
  const TensorView weights = cuda::allocate_by_chunk(ctx, args.x.dims, args.chunk);
  if (ctx.counting()) return weights;
  if constexpr (!kBuiltWithCuda) fail_no_cuda("entering_states");
  if constexpr (kBuiltWithCuda) cuda::write_leaving_weights(ctx, args, weights);
  return weights;
}

// What each run adds to the state.
void fold_runs(const Context& ctx, const EnteringStates& args, const TensorView& weights,
               const cuda::ChunkRuns& runs) {
  cuda::ChunkWalk walk = walk_of(args, weights);
  walk.runs = runs;
  run_walk(ctx, walk);
}

cuda::RunSchedule schedule_of(const EnteringStates& args) {
  return {args.x.dims, args.B.dim(3), args.chunk};
}

cuda::ChunkRuns allocate_runs(const Context& ctx, const EnteringStates& args, int64_t chunks) {
  return cuda::allocate_runs(ctx, args.x.dims, args.B.dim(3), args.chunk, chunks);
}

void fold_row(const Context& ctx, const EnteringStates& args, const TensorView& weights,
              const TensorView& state, const TensorView& decay) {
  const ArenaScope scope(*ctx.scratch);
  const cuda::ChunkRuns runs = allocate_runs(ctx, args, schedule_of(args).chunks);
  fold_runs(ctx, args, weights, runs);
  fold_added(ctx, runs.state, runs.decay, state, decay);
}

// From what they add to what they begin with, and to the row's final state.
void enter_runs(const Context& ctx, const EnteringStates& args, const TensorView& weights,
                const cuda::ChunkRuns& runs) {
  fold_runs(ctx, args, weights, runs);
  const ConstTensorView initial =
      initial_of(ctx, args, [&](const TensorView& state, const TensorView& decay) {
        fold_added(ctx, runs.state, runs.decay, state, decay);
      });
  state_passing_forward(ctx, {.state = runs.state,
                              .decay = runs.decay,
                              .initial = initial,
                              .incoming = runs.state,
                              .final_state = args.final_state});
}

// On tensor cores: of the row or, if it is folded anyway or this is faster, of its runs.
void walk_chunks(const Context& ctx, const EnteringStates& args) {
  const TensorView weights = find_weights(ctx, args);
  cuda::ChunkWalk walk = walk_of(args, weights);
  walk.carried = args.incoming;
  const cuda::RunSchedule schedule = schedule_of(args);
  if (schedule.gains || (args.find_initial && schedule.count > 1)) {
    walk.runs = allocate_runs(ctx, args, schedule.chunks);
    enter_runs(ctx, args, weights, walk.runs);
  } else {
    walk.begin = initial_of(ctx, args, [&](const TensorView& state, const TensorView& decay) {
      fold_row(ctx, args, weights, state, decay);
    });
    walk.end = args.final_state;
  }
  run_walk(ctx, walk);
}

}  // namespace

void entering_states(const Context& ctx, const EnteringStates& args) {
  check_chunk_state_inputs(ctx, chunks_of(args, {}));
  const DType statistics = stat_dtype(args.x.dtype);
  const auto [B, T, H, P] = args.x.shape<4>("x: (B, T, H, P)");
  const int64_t N = args.B.dim(3), M = num_chunks(T, args.chunk);
  expect("incoming", args.incoming, {B, M, H, P, N}, args.x.dtype, ctx.device);
  if (args.final_state)
    expect("final_state", args.final_state, {B, H, P, N}, statistics, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  if (ctx.device.is_cuda() && cuda::entering_states_fit(args)) return walk_chunks(ctx, args);
  // Where what chunks add must lie in memory, it does so as it is carried.
  const TensorView added = args.x.dtype == statistics
                               ? args.incoming
                               : ctx.scratch->alloc(args.incoming.dims, statistics);
  chunk_state_forward(ctx, chunks_of(args, added));
  const ConstTensorView initial =
      initial_of(ctx, args, [&](const TensorView& state, const TensorView& decay) {
        fold_added(ctx, added, args.decay, state, decay);
      });
  state_passing_forward(ctx, {.state = added,
                              .decay = args.decay,
                              .initial = initial,
                              .incoming = args.incoming,
                              .final_state = args.final_state});
}

void fold_states(const Context& ctx, const EnteringStates& args, const TensorView& state,
                 const TensorView& decay) {
  const auto [B, T, H, P] = args.x.shape<4>("x: (B, T, H, P)");
  const int64_t M = num_chunks(T, args.chunk);
  const DType statistics = stat_dtype(args.x.dtype);
  const ArenaScope scope(*ctx.scratch);
  EnteringStates chunks = args;
  chunks.decay = ctx.scratch->alloc({B, M, H}, statistics);
  check_chunk_state_inputs(ctx, chunks_of(chunks, {}));
  if (ctx.device.is_cuda() && cuda::entering_states_fit(chunks))
    return fold_row(ctx, chunks, find_weights(ctx, chunks), state, decay);
  const TensorView added = ctx.scratch->alloc({B, M, H, P, args.B.dim(3)}, statistics);
  chunk_state_forward(ctx, chunks_of(chunks, added));
  fold_added(ctx, added, chunks.decay, state, decay);
}

cuda::ChunkRuns cuda::entering_runs(const Context& ctx, const EnteringStates& args,
                                    int64_t chunks) {
  const ChunkRuns runs = sluice::allocate_runs(ctx, args, chunks);
  const ArenaScope scope(*ctx.scratch);
  enter_runs(ctx, args, find_weights(ctx, args), runs);
  return runs;
}

}  // namespace sluice
