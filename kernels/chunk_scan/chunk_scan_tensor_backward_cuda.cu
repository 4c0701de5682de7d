// chunk_scan's backward on tensor cores: its two kernels, and the sums of what their blocks leave.
#include "kernels/chunk_scan/chunk_scan_tensor.cuh"

namespace sluice::cuda {

namespace {

constexpr int kThreads = 256;

// out = the sum of `parts` partial sums, in order. Four columns a thread.
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(RowsOf<const float> partial, int64_t rows, int columns, int parts,
                     RowsOf<Bf16> out) {
  const int64_t quads = columns / 4;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * quads) return;
  const int64_t row = i / quads, column = i % quads * 4;
  float4 sum = {0, 0, 0, 0};
  for (int part = 0; part < parts; ++part) {
    const float* const from = partial.row(part * rows + row) + column;
    const float4 value = *reinterpret_cast<const float4*>(from);
    sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
  }
  uint2 words = {pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w)};
  *reinterpret_cast<uint2*>(out.row(row) + column) = words;
}

}  // namespace

void sum_parts(const Context& ctx, const ConstTensorView& parts, const TensorView& out) {
  const int64_t rows = out.rows(), columns = out.row_size();
  launch(ctx, "chunk_scan_backward",
         {.blocks = unsigned(ceil_div(rows * columns / 4, kThreads)), .threads = kThreads},
         sum_parts_kernel, rows_of<float>(parts), rows, int(columns), int(parts.dim(0)),
         rows_of<Bf16>(out));
}

bool tensor_scan_backward(const Context& ctx, const ChunkScanBackward& args,
                          const ChunkScanPartials& partials) {
  if (!tensor_cores_take(args)) return false;
  for (const ConstTensorView view : {args.dy, ConstTensorView(args.dx), ConstTensorView(args.dB),
                                     ConstTensorView(args.dC), ConstTensorView(args.dincoming)}) {
    if (!aligned_rows(view)) return false;
  }
  const ScanInputs<Bf16> in = scan_inputs<Bf16>(args);
  if (!has_shared_bytes(std::max(pairs_backward_shared(in), incoming_backward_shared(in))))
    return false;
  const int splits = int(partials.dB.dim(0));
  const ScanGradients to = {.dy = rows_of<Bf16>(args.dy),
                            .dx = rows_of<Bf16>(args.dx),
                            .ddt = rows_of<float>(args.ddt),
                            .dcum = rows_of<float>(args.dcum),
                            .dincoming = rows_of<float>(args.dincoming),
                            .partial_dD = rows_of<float>(partials.dD),
                            .partial_dB = rows_of<float>(partials.dB),
                            .partial_dC = rows_of<float>(partials.dC),
                            .all_tokens = args.x.rows(),
                            .splits = splits,
                            .adds_dcum = true};
  incoming_backward(ctx, in, to);
  pairs_backward(ctx, in, to);
  sum_parts(ctx, partials.dB, args.dB);
  sum_parts(ctx, partials.dC, args.dC);
  add_partial_dD(ctx, partials.dD, in.chunk_rows, args.dD);
  return true;
}

}  // namespace sluice::cuda
