// chunk_scan on the plain cores, forward: every shape, f32 exactly. Not built for speed: what it
// reads it reads again for every tile.
#include "kernels/chunk_scan/chunk_scan_plain.cuh"

namespace sluice::cuda {

namespace {

constexpr auto kAlong = Neighbours::along_depth;
constexpr auto kAcross = Neighbours::across;

// A block makes 64 tokens x 64 of a head's columns.
template <class T>
__global__ void __launch_bounds__(kPlainThreads) forward_kernel(ScanInputs<T> in, RowsOf<T> y) {
  __shared__ PlainRoom room;
  BlockIndex index(blockIdx.x);
  const int p0 = index.take((in.head_dim + kTile - 1) / kTile) * kTile;
  const int t0 = index.take((in.chunk + kTile - 1) / kTile) * kTile;
  const int h = index.take(in.heads);
  const PlainHead<T> head(in, index.rest, h);
  const int size = head.place.size, P = head.P, N = head.N;
  if (t0 >= size) return;

  PlainTile out;
  multiply<kAlong, kAlong>(room, out, N, ReadRows<T>{head.C, t0, size, N},
                           ReadRows<T>{head.incoming, p0, P, N});
  out.for_each([&](float& value, int i, int) { value *= head.entering(t0 + i); });
  for (int s0 = 0; s0 <= t0; s0 += kTile) {
    PlainTile scores;
    multiply<kAlong, kAlong>(room, scores, N, ReadRows<T>{head.C, t0, size, N},
                             ReadRows<T>{head.B, s0, size, N});
    __syncthreads();
    scores.for_each([&](float score, int i, int j) {
      const int t = t0 + i, s = s0 + j;
      room.tile[i][j] = head.sees(t, s) ? score * head.decay(t, s) * *head.dt.row(s) : 0.0f;
    });
    const RowsOf<const T> x{head.x.row(s0), head.x.stride};
    multiply<kAlong, kAcross>(
        room, out, kTile, [&](int i, int k) { return room.tile[i][k]; },
        ReadColumns<T>{x, p0, size - s0, P});
  }
  const RowsOf<T> to{y.row(head.place.row0) + int64_t(h) * P, y.stride};
  out.for_each([&](float value, int i, int j) {
    const int t = t0 + i, p = p0 + j;
    if (t >= size || p >= P) return;
    to.row(t)[p] = from_float<T>(value + head.D * to_float(head.x.row(t)[p]));
  });
}

}  // namespace

template <class T>
void plain_scan_forward(const Context& ctx, const ChunkScanForward& args) {
  const ScanInputs<T> in = scan_inputs<T>(args);
  const int64_t blocks =
      int64_t(in.chunk_rows) * in.heads * ceil_div(in.chunk, kTile) * ceil_div(in.head_dim, kTile);
  launch(ctx, "chunk_scan_forward", {.blocks = unsigned(blocks), .threads = kPlainThreads},
         forward_kernel<T>, in, rows_of<T>(args.y));
}

template void plain_scan_forward<float>(const Context&, const ChunkScanForward&);
template void plain_scan_forward<Bf16>(const Context&, const ChunkScanForward&);

}  // namespace sluice::cuda
