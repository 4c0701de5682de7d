// ssd_backward on tensor cores. In order: the weights of tokens, the walk over the gradients of
// leaving states, the pairs of tokens in a chunk, and what goes through states; sums at last.
#include "kernels/chunk_scan/ssd_states.cuh"
#include "kernels/chunk_state/chunk_state_cuda.cuh"
#include "kernels/chunk_state/chunk_state_tokens.cuh"

namespace sluice::cuda {

namespace {

constexpr const char* kName = "ssd_backward";

// Rows of a part, from the `part`-th split on.
RowsOf<float> parts_from(const TensorView& parts, int64_t part) {
  if (!parts) return {nullptr, 0};
  const RowsOf<float> rows = rows_of<float>(parts);
  return {rows.data + part * parts.dim(1) * rows.stride, rows.stride};
}

ScanGradients pairs_of(const SsdBackward& args, const SsdScratch& scratch,
                       const SsdSplits& splits) {
  const bool whole = !splits.has_parts();
  return {.dy = rows_of<Bf16>(args.dy),
          .dx = rows_of<Bf16>(args.dx),
          .ddt = rows_of<float>(args.ddt),
          .dcum = rows_of<float>(args.dcum),
          .dincoming = {nullptr, 0},
          .partial_dD = rows_of<float>(scratch.partials.dD),
          .partial_dB = parts_from(scratch.partials.dB, 0),
          .partial_dC = parts_from(scratch.partials.dC, 0),
          .all_tokens = args.x.rows(),
          .splits = int(splits.pairs),
          .adds_dcum = false,
          .dB = whole ? rows_of<Bf16>(args.dB) : RowsOf<Bf16>{},
          .dC = whole ? rows_of<Bf16>(args.dC) : RowsOf<Bf16>{}};
}

StatesBackward states_of(const SsdBackward& args, const SsdScratch& scratch,
                         const SsdSplits& splits, int64_t padded) {
  return {.in = scan_inputs<Bf16>(args),
          .dy = rows_of<Bf16>(args.dy),
          .doutgoing = rows_of<Bf16>(ConstTensorView(scratch.doutgoing)),
          .leaving = scratch.leaving.as<float>(),
          .entering = scratch.entering.as<float>(),
          .padded = padded,
          .dx = rows_of<Bf16>(args.dx),
          .dB = rows_of<Bf16>(args.dB),
          .dC = rows_of<Bf16>(args.dC),
          .leaving_dots = scratch.leaving_dots.as<float>(),
          .entering_dots = scratch.entering_dots.as<float>(),
          .state_dots = scratch.state_dots.as<float>(),
          .part_dB = parts_from(scratch.partials.dB, splits.pairs),
          .part_dC = parts_from(scratch.partials.dC, splits.pairs),
          .all_tokens = args.x.rows(),
          .splits = int(splits.states),
          .tiles = int(splits.tiles)};
}

}  // namespace

void ssd_backward_weights(const Context& ctx, const SsdBackward& args, const SsdScratch& scratch) {
  write_chunk_weights(
      ctx, kName, chunk_state_inputs<Bf16>(args), args.x.dim(0),
      {.leaving = scratch.leaving.as<float>(), .entering = scratch.entering.as<float>()});
}

void ssd_backward(const Context& ctx, const SsdBackward& args, const SsdScratch& scratch) {
  const auto in = chunk_state_inputs<Bf16>(args);
  const int64_t padded = padded_chunk(in.chunk, in.tokens), batch = args.x.dim(0);
  const SsdSplits splits(args);
  ChunkWalk walk = reverse_walk(args, scratch);
  walk.carried = scratch.doutgoing;
  walk.runs = scratch.runs;
  walk.begin = args.dfinal;
  walk_chunks_mma(ctx, walk);
  pairs_backward(ctx, scan_inputs<Bf16>(args), pairs_of(args, scratch, splits));
  states_backward(ctx, states_of(args, scratch, splits, padded));
  const ChunkStateGradients<Bf16, Bf16> out{.ddt = args.ddt.as<float>(),
                                            .dcum = args.dcum.as<float>(),
                                            .ddt_stride = args.ddt.row_stride,
                                            .dcum_stride = args.dcum.row_stride};
  const ChunkDots dots{.leaving = scratch.leaving_dots.as<float>(),
                       .entering = scratch.entering_dots.as<float>(),
                       .states = scratch.state_dots.as<float>(),
                       .decay = args.decay.as<float>(),
                       .decay_stride = args.decay.row_stride};
  launch(ctx, kName, token_grid(batch * in.M, in.H), chunk_dots_kernel<Bf16, Bf16>, in, out, padded,
         dots);
  if (splits.has_parts()) {
    sum_parts(ctx, scratch.partials.dB, args.dB);
    sum_parts(ctx, scratch.partials.dC, args.dC);
  }
  add_partial_dD(ctx, scratch.partials.dD, args.incoming.rows(), args.dD);
}

}  // namespace sluice::cuda
