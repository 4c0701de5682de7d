#include "kernels/chunk_scan/chunk_scan.h"

#include <algorithm>

#include "kernels/chunk_scan/chunk_scan_cpu.h"
#include "kernels/chunk_scan/chunk_scan_cuda.h"
#include "kernels/core/chunks.h"
#include "kernels/core/dispatch.h"

namespace sluice {
namespace {

// What forward and backward share.
template <class Args>
void check_inputs(const Context& ctx, const Args& args) {
  const auto [B, T, H, P] = args.x.template shape<4>("x: (B, T, H, P)");
  const int64_t G = args.B.template shape<4>("B: (B, T, G, N)")[2], N = args.B.dim(3);
  const DType statistics = stat_dtype(args.x.dtype);
  SLUICE_CHECK(B > 0 && T > 0 && P > 0, "x is empty: ", to_string(args.x.dims));
  SLUICE_CHECK(G > 0 && H > 0 && H % G == 0, "groups must divide heads, got ", G, " and ", H);
  SLUICE_CHECK(args.chunk > 0, "chunk must be positive, got ", args.chunk);
  expect("x", args.x, args.x.dims, args.x.dtype, ctx.device);
  expect("B", args.B, {B, T, G, N}, args.x.dtype, ctx.device);
  expect("C", args.C, {B, T, G, N}, args.x.dtype, ctx.device);
  expect("dt", args.dt, {B, T, H}, statistics, ctx.device);
  expect("cum", args.cum, {B, T, H}, statistics, ctx.device);
  expect("D", args.D, {H}, statistics, ctx.device);
  expect("doc_begin", args.doc_begin, {B, T}, DType::i32, ctx.device);
}

template <class Args>
void check_incoming(const Context& ctx, const Args& args) {
  const auto [B, T, H, P] = args.x.template shape<4>("x: (B, T, H, P)");
  expect("incoming", args.incoming, {B, num_chunks(T, args.chunk), H, P, args.B.dim(3)},
         args.x.dtype, ctx.device);
}

cuda::ChunkScanPartials allocate_partials(Arena& scratch, const ChunkScanBackward& args) {
  const int64_t tokens = args.x.rows(), H = args.x.dim(2), G = args.B.dim(2), N = args.B.dim(3);
  const int64_t chunks = args.incoming.rows(), tiles = num_chunks(args.chunk, cuda::kScanTile);
  cuda::ChunkScanPartials partials{.dD = scratch.alloc({chunks * tiles, H}, DType::f32)};
  if (cuda::tensor_cores_take(args.x, args.B, args.chunk)) {
    const int64_t splits = cuda::head_splits(chunks * G, H / G, cuda::kMultiprocessors);
    partials.dB = scratch.alloc({splits, tokens, G * N}, DType::f32);
    partials.dC = scratch.alloc({2 * splits, tokens, G * N}, DType::f32);
  }
  return partials;
}

}  // namespace

int64_t chunk_to_take(Device device, DType dtype, int64_t head_dim, int64_t state_dim,
                      int64_t longest) {
  // Products of warpgroups are for chunks of 128 tokens: with 256 twice the pairs cost more than
  // half of the states saves.
  const bool by_groups =
      device.is_cuda() && dtype == DType::bf16 && head_dim == 64 && state_dim == 128;
  return by_groups ? std::min<int64_t>(longest, 128) : longest;
}

void check_chunk_scan_forward(const Context& ctx, const ChunkScanForward& args) {
  check_inputs(ctx, args);
  expect("y", args.y, args.x.dims, args.x.dtype, ctx.device);
}

void chunk_scan_forward(const Context& ctx, const ChunkScanForward& args) {
  check_chunk_scan_forward(ctx, args);
  check_incoming(ctx, args);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::chunk_scan_forward(ctx, args);
    fail_no_cuda("chunk_scan_forward");
  }
  if (args.x.dtype == DType::f32) return cpu::chunk_scan_tiles_forward<float>(args);
  dispatch_float(args.x.dtype, [&]<class Real>() { cpu::chunk_scan_forward<Real>(args); });
}

void check_chunk_scan_backward(const Context& ctx, const ChunkScanBackward& args) {
  check_inputs(ctx, args);
  check_incoming(ctx, args);
  const DType statistics = stat_dtype(args.x.dtype);
  const int64_t H = args.x.dim(2);
  expect("dy", args.dy, args.x.dims, args.x.dtype, ctx.device);
  expect("dx", args.dx, args.x.dims, args.x.dtype, ctx.device);
  expect("dB", args.dB, args.B.dims, args.x.dtype, ctx.device);
  expect("dC", args.dC, args.C.dims, args.x.dtype, ctx.device);
  expect("ddt", args.ddt, args.dt.dims, statistics, ctx.device);
  expect("dcum", args.dcum, args.cum.dims, statistics, ctx.device);
  expect("dD", args.dD, {H}, statistics, ctx.device);
}

void chunk_scan_backward(const Context& ctx, const ChunkScanBackward& args) {
  check_chunk_scan_backward(ctx, args);
  const DType statistics = stat_dtype(args.x.dtype);
  const int64_t H = args.x.dim(2);
  expect("dincoming", args.dincoming, args.incoming.dims, statistics, ctx.device);
  const ArenaScope scope(*ctx.scratch);
  if (ctx.device.is_cuda()) {
    const cuda::ChunkScanPartials partials = allocate_partials(*ctx.scratch, args);
    if (ctx.counting()) return;
    if constexpr (kBuiltWithCuda) return cuda::chunk_scan_backward(ctx, args, partials);
    fail_no_cuda("chunk_scan_backward");
  }
  const TensorView partial_dD = ctx.scratch->alloc({args.incoming.rows(), H}, statistics);
  if (ctx.counting()) return;
  if (args.x.dtype == DType::f32) return cpu::chunk_scan_tiles_backward<float>(args, partial_dD);
  dispatch_float(args.x.dtype,
                 [&]<class Real>() { cpu::chunk_scan_backward<Real>(args, partial_dD); });
}

}  // namespace sluice
