#include "kernels/chunk_scan/chunk_scan_tensor.cuh"

#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

namespace {

// A warp a head.
__global__ void add_partial_dD_kernel(RowsOf<const float> partial, int64_t rows, float* dD) {
  const int head = blockIdx.x;
  double sum = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kWarp) sum += partial.row(row)[head];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) dD[head] += float(sum);
}

}  // namespace

void add_partial_dD(const Context& ctx, const ConstTensorView& partial, int64_t rows,
                    const TensorView& dD) {
  launch(ctx, "chunk_scan_backward", {.blocks = unsigned(dD.dim(0)), .threads = kWarp},
         add_partial_dD_kernel, rows_of<float>(partial), rows, pointer<float>(dD));
}

void chunk_scan_forward(const Context& ctx, const ChunkScanForward& args) {
  if (tensor_scan_forward(ctx, args)) return;
  dispatch_float(args.x.dtype, [&]<class T>() { plain_scan_forward<T>(ctx, args); });
}

void chunk_scan_backward(const Context& ctx, const ChunkScanBackward& args,
                         const ChunkScanPartials& partials) {
  if (tensor_scan_backward(ctx, args, partials)) return;
  dispatch_float(args.x.dtype, [&]<class T>() { plain_scan_backward<T>(ctx, args, partials); });
}

}  // namespace sluice::cuda
