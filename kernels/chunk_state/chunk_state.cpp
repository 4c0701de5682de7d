#include "kernels/chunk_state/chunk_state.h"

#include "kernels/chunk_state/chunk_state_cpu.h"
#include "kernels/chunk_state/chunk_state_cuda.h"
#include "kernels/core/chunks.h"
#include "kernels/core/dispatch.h"

namespace sluice {
namespace {

// What forward and backward share.
template <class Args>
void check_inputs(const Context& ctx, const Args& args) {
  const auto [B, T, H, P] = args.x.template shape<4>("x: (B, T, H, P)");
  const int64_t G = args.B.template shape<4>("B: (B, T, G, N)")[2];
  const DType statistics = stat_dtype(args.x.dtype);
  SLUICE_CHECK(B > 0 && T > 0 && P > 0, "x is empty: ", to_string(args.x.dims));
  SLUICE_CHECK(G > 0 && H > 0 && H % G == 0, "groups must divide heads, got ", G, " and ", H);
  SLUICE_CHECK(args.chunk > 0, "chunk must be positive, got ", args.chunk);
  expect("x", args.x, args.x.dims, args.x.dtype, ctx.device);
  expect("B", args.B, {B, T, G, args.B.dim(3)}, args.x.dtype, ctx.device);
  expect("dt", args.dt, {B, T, H}, statistics, ctx.device);
  expect("cum", args.cum, {B, T, H}, statistics, ctx.device);
  expect("doc_begin", args.doc_begin, {B, T}, DType::i32, ctx.device);
}

cuda::ChunkStateScratch allocate_for_cuda(const Context& ctx, const ChunkStateBackward& args) {
  if (!ctx.device.is_cuda() || !cuda::chunk_state_backward_has_mma(args)) return {};
  const Dims &x = args.x.dims, &B = args.B.dims;
  const cuda::ChunkStateTiles tiles = cuda::chunk_state_tiles(x, B[2], args.chunk);
  return {.weights = cuda::allocate_by_chunk(ctx, x, args.chunk),
          .dots = cuda::allocate_by_chunk(ctx, x, args.chunk),
          .dB = ctx.scratch->alloc({tiles.splits, x.rows(), B[2] * B[3]}, DType::f32)};
}

}  // namespace

void check_chunk_state_inputs(const Context& ctx, const ChunkStateForward& args) {
  check_inputs(ctx, args);
  const auto [B, T, H, P] = args.x.shape<4>("x: (B, T, H, P)");
  expect("decay", args.decay, {B, num_chunks(T, args.chunk), H}, stat_dtype(args.x.dtype),
         ctx.device);
}

void chunk_state_forward(const Context& ctx, const ChunkStateForward& args) {
  check_chunk_state_inputs(ctx, args);
  const auto [B, T, H, P] = args.x.shape<4>("x: (B, T, H, P)");
  expect("state", args.state, {B, num_chunks(T, args.chunk), H, P, args.B.dim(3)},
         stat_dtype(args.x.dtype), ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::chunk_state_forward(ctx, args);
    fail_no_cuda("chunk_state_forward");
  }
  if (args.x.dtype == DType::f32) return cpu::chunk_state_tiles_forward<float>(args);
  dispatch_float(args.x.dtype, [&]<class Real>() { cpu::chunk_state_forward<Real>(args); });
}

void chunk_state_backward(const Context& ctx, const ChunkStateBackward& args) {
  check_inputs(ctx, args);
  const auto [B, T, H, P] = args.x.shape<4>("x: (B, T, H, P)");
  const int64_t M = num_chunks(T, args.chunk);
  const DType statistics = stat_dtype(args.x.dtype);
  expect("dstate", args.dstate, {B, M, H, P, args.B.dim(3)},
         args.dstate.dtype == args.x.dtype ? args.x.dtype : statistics, ctx.device);
  expect("dlog_decay", args.dlog_decay, {B, M, H}, statistics, ctx.device);
  expect("dx", args.dx, args.x.dims, args.x.dtype, ctx.device);
  expect("dB", args.dB, args.B.dims, args.x.dtype, ctx.device);
  expect("ddt", args.ddt, {B, T, H}, statistics, ctx.device);
  expect("dcum", args.dcum, {B, T, H}, statistics, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  const cuda::ChunkStateScratch for_cuda = allocate_for_cuda(ctx, args);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::chunk_state_backward(ctx, args, for_cuda);
    fail_no_cuda("chunk_state_backward");
  }
  if (args.x.dtype == DType::f32) return cpu::chunk_state_tiles_backward<float>(args);
  dispatch_float(args.x.dtype, [&]<class Real>() { cpu::chunk_state_backward<Real>(args); });
}

}  // namespace sluice
