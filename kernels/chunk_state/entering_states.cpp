#include "kernels/chunk_state/entering_states.h"

#include "kernels/chunk_state/chunk_state.h"
#include "kernels/chunk_state/chunk_state_cuda.h"
#include "kernels/core/dispatch.h"
#include "kernels/state_passing/state_passing.h"

namespace sluice {

void entering_states(const Context& ctx, const EnteringStates& args) {
  const ChunkStateForward states{.x = args.x,
                                 .B = args.B,
                                 .dt = args.dt,
                                 .cum = args.cum,
                                 .doc_begin = args.doc_begin,
                                 .state = args.incoming,
                                 .decay = args.decay,
                                 .chunk = args.chunk};
  const StatePassingForward passing{.state = args.incoming,
                                    .decay = args.decay,
                                    .initial = args.initial,
                                    .incoming = args.incoming,
                                    .final_state = args.final_state};
  const ArenaScope scope(*ctx.scratch);
  TensorView weights;
  if (ctx.device.is_cuda() && cuda::chunk_states_have_mma(args.x, args.B, args.chunk))
    weights = cuda::allocate_by_chunk(ctx, args.x.dims, args.chunk);
  if constexpr (kBuiltWithCuda) {
    if (weights && !ctx.counting() && cuda::chunk_states_fit(states, passing)) {
      check_chunk_state_forward(ctx, states);
      check_state_passing_forward(ctx, passing);
      return cuda::entering_states_mma(ctx, states, passing, weights);
    }
  }
  chunk_state_forward(ctx, states);
  state_passing_forward(ctx, passing);
}

}  // namespace sluice
