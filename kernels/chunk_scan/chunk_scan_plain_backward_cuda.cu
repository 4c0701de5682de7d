// chunk_scan on the plain cores, backward: every shape, f32 exactly. Each output has a kernel whose
// blocks own tiles of it and add what belongs there in order; scores are formed again in each.
#include "kernels/chunk_scan/chunk_scan_plain.cuh"
#include "kernels/device/reduce.cuh"

namespace sluice::cuda {

namespace {

constexpr auto kAlong = Neighbours::along_depth;
constexpr auto kAcross = Neighbours::across;

template <class T>
struct ScanOutputs {
  RowsOf<T> dx, dB, dC;
  RowsOf<float> ddt, dcum, dincoming, partial_dD;
};

template <class T>
__device__ RowsOf<const T> head_rows(const RowsOf<const T>& all, const PlainHead<T>& head) {
  return {all.row(head.place.row0) + int64_t(head.head) * head.P, all.stride};
}

// A block makes dx of 64 tokens s x 64 columns of a head: pairs with every t >= s. The blocks of
// the first columns also make ddt, the shares of s in dcum, and the tile's share of dD.
template <class T>
__global__ void __launch_bounds__(kPlainThreads)
    from_later_kernel(ScanInputs<T> in, RowsOf<const T> all_dy, ScanOutputs<T> to) {
  __shared__ PlainRoom room;
  __shared__ float sums[kPlainThreads / kWarp];
  BlockIndex index(blockIdx.x);
  const int p0 = index.take((in.head_dim + kTile - 1) / kTile) * kTile;
  const int tiles = int((in.chunk + kTile - 1) / kTile), tile = index.take(tiles);
  const int s0 = tile * kTile, h = index.take(in.heads);
  const PlainHead<T> head(in, index.rest, h);
  const RowsOf<const T> dy = head_rows(all_dy, head);
  const int size = head.place.size, P = head.P, N = head.N;

  PlainTile dx;
  float ddt[kEach] = {}, dcum[kEach] = {}, dD = 0;
  for (int t0 = s0; t0 < size; t0 += kTile) {
    PlainTile scores, dy_x;
    multiply<kAlong, kAlong>(room, scores, N, ReadRows<T>{head.B, s0, size, N},
                             ReadRows<T>{head.C, t0, size, N});
    multiply<kAlong, kAlong>(room, dy_x, P, ReadRows<T>{head.x, s0, size, P},
                             ReadRows<T>{dy, t0, size, P});
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
#pragma unroll
      for (int c = 0; c < kEach; ++c) {
        const int s = s0 + PlainTile::row(r), t = t0 + PlainTile::column(c);
        const bool seen = head.sees(t, s);
        const float score = seen ? scores.values[r][c] * head.decay(t, s) : 0.0f;
        const float share = score * dy_x.values[r][c];
        ddt[r] += share;
        if (t != s) dcum[r] += share;
        if (t == s) dD += dy_x.values[r][c];
        room.tile[PlainTile::row(r)][PlainTile::column(c)] = seen ? score * *head.dt.row(s) : 0.0f;
      }
    }
    multiply<kAlong, kAcross>(
        room, dx, kTile, [&](int i, int k) { return room.tile[i][k]; },
        ReadColumns<T>{{dy.row(t0), dy.stride}, p0, size - t0, P});
  }
  const int64_t row0 = head.place.row0;
  dx.for_each([&](float value, int i, int j) {
    const int s = s0 + i, p = p0 + j;
    if (s >= size || p >= P) return;
    to.dx.row(row0 + s)[int64_t(h) * P + p] =
        from_float<T>(value + head.D * to_float(dy.row(s)[p]));
  });
  if (p0 > 0) return;
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    const int s = s0 + PlainTile::row(r);
    const float all = row_sum(ddt[r]), strict = row_sum(dcum[r]);
    if (threadIdx.x % kSide != 0 || s >= size) continue;
    to.ddt.row(row0 + s)[h] = all;
    to.dcum.row(row0 + s)[h] = -strict * *head.dt.row(s);
  }
  dD = block_sum<kPlainThreads>(dD, sums);
  if (threadIdx.x == 0) to.partial_dD.row(index.rest * tiles + tile)[h] = dD;
}

// Adds to dcum what 64 tokens t have from the earlier tokens and from the incoming state.
template <class T>
__global__ void __launch_bounds__(kPlainThreads)
    from_earlier_kernel(ScanInputs<T> in, RowsOf<const T> all_dy, ScanOutputs<T> to) {
  __shared__ PlainRoom room;
  BlockIndex index(blockIdx.x);
  const int t0 = index.take((in.chunk + kTile - 1) / kTile) * kTile, h = index.take(in.heads);
  const PlainHead<T> head(in, index.rest, h);
  const RowsOf<const T> dy = head_rows(all_dy, head);
  const int size = head.place.size, P = head.P, N = head.N;
  if (t0 >= size) return;

  float dcum[kEach] = {};
  for (int s0 = 0; s0 <= t0; s0 += kTile) {
    PlainTile scores, dy_x;
    multiply<kAlong, kAlong>(room, scores, N, ReadRows<T>{head.C, t0, size, N},
                             ReadRows<T>{head.B, s0, size, N});
    multiply<kAlong, kAlong>(room, dy_x, P, ReadRows<T>{dy, t0, size, P},
                             ReadRows<T>{head.x, s0, size, P});
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
#pragma unroll
      for (int c = 0; c < kEach; ++c) {
        const int t = t0 + PlainTile::row(r), s = s0 + PlainTile::column(c);
        if (s == t || !head.sees(t, s)) continue;
        dcum[r] += scores.values[r][c] * head.decay(t, s) * dy_x.values[r][c] * *head.dt.row(s);
      }
    }
  }
  for (int n0 = 0; n0 < N; n0 += kTile) {
    PlainTile v;
    multiply<kAlong, kAcross>(room, v, P, ReadRows<T>{dy, t0, size, P},
                              ReadColumns<T>{head.incoming, n0, P, N});
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
#pragma unroll
      for (int c = 0; c < kEach; ++c) {
        const int t = t0 + PlainTile::row(r), n = n0 + PlainTile::column(c);
        if (t >= size || n >= N) continue;
        dcum[r] += head.entering(t) * v.values[r][c] * to_float(head.C.row(t)[n]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    const int t = t0 + PlainTile::row(r);
    const float sum = row_sum(dcum[r]);
    if (threadIdx.x % kSide == 0 && t < size) to.dcum.row(head.place.row0 + t)[h] += sum;
  }
}

// A block makes dC (or dB) of 64 tokens x 64 columns of a group, over the group's heads in order.
template <class T, bool kOfB>
__global__ void __launch_bounds__(kPlainThreads)
    group_kernel(ScanInputs<T> in, RowsOf<const T> all_dy, ScanOutputs<T> to) {
  __shared__ PlainRoom room;
  BlockIndex index(blockIdx.x);
  const int n0 = index.take((in.state_dim + kTile - 1) / kTile) * kTile;
  const int own0 = index.take((in.chunk + kTile - 1) / kTile) * kTile, g = index.take(in.groups);
  const int first_head = g * in.group_heads(), end_head = first_head + in.group_heads();
  const PlainHead<T> group(in, index.rest, first_head);
  const int size = group.place.size, P = group.P, N = group.N;
  if (own0 >= size) return;

  PlainTile out;
  for (int h = first_head; !kOfB && h < end_head; ++h) {
    const PlainHead<T> head(in, index.rest, h);
    const ReadRows<T> dy{head_rows(all_dy, head), own0, size, P};
    multiply<kAlong, kAcross>(
        room, out, P, [&](int i, int k) { return head.entering(own0 + i) * dy(i, k); },
        ReadColumns<T>{head.incoming, n0, P, N});
  }
  for (int other0 = kOfB ? own0 : 0; other0 < (kOfB ? size : own0 + 1); other0 += kTile) {
    PlainTile dscores;
    for (int h = first_head; h < end_head; ++h) {
      const PlainHead<T> head(in, index.rest, h);
      const RowsOf<const T> dy = head_rows(all_dy, head);
      PlainTile dy_x;
      multiply<kAlong, kAlong>(room, dy_x, P, ReadRows<T>{kOfB ? head.x : dy, own0, size, P},
                               ReadRows<T>{kOfB ? dy : head.x, other0, size, P});
#pragma unroll
      for (int r = 0; r < kEach; ++r) {
#pragma unroll
        for (int c = 0; c < kEach; ++c) {
          const int own = own0 + PlainTile::row(r), other = other0 + PlainTile::column(c);
          const int t = kOfB ? other : own, s = kOfB ? own : other;
          if (!head.sees(t, s)) continue;
          dscores.values[r][c] += head.decay(t, s) * *head.dt.row(s) * dy_x.values[r][c];
        }
      }
    }
    __syncthreads();
    dscores.for_each([&](float value, int i, int j) { room.tile[i][j] = value; });
    const RowsOf<const T> factor = kOfB ? group.C : group.B;
    multiply<kAlong, kAcross>(
        room, out, kTile, [&](int i, int k) { return room.tile[i][k]; },
        ReadColumns<T>{{factor.row(other0), factor.stride}, n0, size - other0, N});
  }
  const RowsOf<T>& d = kOfB ? to.dB : to.dC;
  out.for_each([&](float value, int i, int j) {
    const int own = own0 + i, n = n0 + j;
    if (own >= size || n >= N) return;
    d.row(group.place.row0 + own)[int64_t(g) * N + n] = from_float<T>(value);
  });
}

// A block makes 64 x 64 of a head's (P, N).
template <class T>
__global__ void __launch_bounds__(kPlainThreads)
    incoming_kernel(ScanInputs<T> in, RowsOf<const T> all_dy, ScanOutputs<T> to) {
  __shared__ PlainRoom room;
  BlockIndex index(blockIdx.x);
  const int n0 = index.take((in.state_dim + kTile - 1) / kTile) * kTile;
  const int p0 = index.take((in.head_dim + kTile - 1) / kTile) * kTile, h = index.take(in.heads);
  const PlainHead<T> head(in, index.rest, h);
  const ReadColumns<T> dy{head_rows(all_dy, head), p0, head.place.size, head.P};

  PlainTile out;
  multiply<kAcross, kAcross>(
      room, out, head.place.size, [&](int i, int k) { return head.entering(k) * dy(i, k); },
      ReadColumns<T>{head.C, n0, head.place.size, head.N});
  float* const d = to.dincoming.row(index.rest) + int64_t(h) * head.P * head.N;
  out.for_each([&](float value, int i, int j) {
    if (p0 + i < head.P && n0 + j < head.N) d[int64_t(p0 + i) * head.N + n0 + j] = value;
  });
}

}  // namespace

template <class T>
void plain_scan_backward(const Context& ctx, const ChunkScanBackward& args,
                         const ChunkScanPartials& partials) {
  const ScanInputs<T> in = scan_inputs<T>(args);
  const RowsOf<const T> dy = rows_of<T>(args.dy);
  const ScanOutputs<T> to = {.dx = rows_of<T>(args.dx),
                             .dB = rows_of<T>(args.dB),
                             .dC = rows_of<T>(args.dC),
                             .ddt = rows_of<float>(args.ddt),
                             .dcum = rows_of<float>(args.dcum),
                             .dincoming = rows_of<float>(args.dincoming),
                             .partial_dD = rows_of<float>(partials.dD)};
  const int64_t chunks = in.chunk_rows, token_tiles = ceil_div(in.chunk, kTile);
  const int64_t P_tiles = ceil_div(in.head_dim, kTile), N_tiles = ceil_div(in.state_dim, kTile);
  const auto run = [&](auto kernel, int64_t blocks) {
    launch(ctx, "chunk_scan_backward", {.blocks = unsigned(blocks), .threads = kPlainThreads},
           kernel, in, dy, to);
  };
  run(from_later_kernel<T>, chunks * in.heads * token_tiles * P_tiles);
  run(from_earlier_kernel<T>, chunks * in.heads * token_tiles);
  run(group_kernel<T, true>, chunks * in.groups * token_tiles * N_tiles);
  run(group_kernel<T, false>, chunks * in.groups * token_tiles * N_tiles);
  run(incoming_kernel<T>, chunks * in.heads * P_tiles * N_tiles);
  add_partial_dD(ctx, partials.dD, partials.dD.rows(), args.dD);
}

template void plain_scan_backward<float>(const Context&, const ChunkScanBackward&,
                                         const ChunkScanPartials&);
template void plain_scan_backward<Bf16>(const Context&, const ChunkScanBackward&,
                                        const ChunkScanPartials&);

}  // namespace sluice::cuda
