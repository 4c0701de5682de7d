#include "kernels/chunk_state/entering_states.h"

#include "kernels/chunk_state/chunk_state.h"
#include "kernels/chunk_state/chunk_state_cuda.h"
#include "kernels/core/chunks.h"
#include "kernels/core/dispatch.h"
#include "kernels/state_passing/state_passing.h"

namespace sluice {

void entering_states(const Context& ctx, const EnteringStates& args) {
  ChunkStateForward states{.x = args.x,
                           .B = args.B,
                           .dt = args.dt,
                           .cum = args.cum,
                           .doc_begin = args.doc_begin,
                           .state = args.incoming,
                           .decay = args.decay,
                           .chunk = args.chunk};
  check_chunk_state_inputs(ctx, states);
  const DType statistics = stat_dtype(args.x.dtype);
  const auto [B, T, H, P] = args.x.shape<4>("x: (B, T, H, P)");
  const int64_t N = args.B.dim(3), M = num_chunks(T, args.chunk);
  expect("incoming", args.incoming, {B, M, H, P, N}, args.x.dtype, ctx.device);
  if (args.initial) expect("initial", args.initial, {B, H, P, N}, statistics, ctx.device);
  if (args.final_state)
    expect("final_state", args.final_state, {B, H, P, N}, statistics, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  if (ctx.device.is_cuda() && cuda::entering_states_fit(args)) {
    const TensorView weights = cuda::allocate_by_chunk(ctx, args.x.dims, args.chunk);
    if (ctx.counting()) return;
    if constexpr (kBuiltWithCuda) return cuda::entering_states_mma(ctx, args, weights);
    fail_no_cuda("entering_states");
  }
  // Where what chunks add must lie in memory, it does so as it is carried.
  if (args.x.dtype != statistics) states.state = ctx.scratch->alloc(args.incoming.dims, statistics);
  chunk_state_forward(ctx, states);
  state_passing_forward(ctx, {.state = states.state,
                              .decay = args.decay,
                              .initial = args.initial,
                              .incoming = args.incoming,
                              .final_state = args.final_state});
}

}  // namespace sluice
