// The backward: its cells, its sums, and how it is started.
#include "kernels/selective_scan/selective_scan_backward_walk.cuh"

namespace sluice::cuda {

namespace {

constexpr int kReduceThreads = 256;

template <class T>
struct BackwardOutput {
  ScanColumns<const float> span_states;
  ScanColumns<const float> entering;  // gradient of the state after a piece; absent: zeros
  ScanColumns<T> du, ddelta;
  ScanColumns<T> dz, y;                           // optional
  ScanColumns<float> dinitial;                    // optional
  ScanColumns<float> dBC;                         // a row a tile and token
  ScanColumns<float> parameters;                  // a row a piece and sum
  ScanColumns<float> sum_y, sum_dinput, sum_ddt;  // over blocks of states, if there are several
  bool first, last;                               // of those blocks
  bool wide, wide_BC;                             // whether activations move by 16 bytes; B and C
};

template <class T>
size_t shared_bytes(int64_t width) {
  return sizeof(BackwardRoom<T>) + width / kWarpChannels * History<T>::kBytes;
}

// What a cell needs of its span.
template <class T>
struct BackwardCell {
  Eight<T> u, delta, z, dy;
  bool start;

  __device__ void load(const ScanInput<T>& in, const ScanBlock& block, const ScanCell& cell,
                       int span, bool wide) {
    const int present = cell.present_in(span * kSpan, block.end);
    const int t = span * kSpan + cell.token, row = block.row + t;
    u.load(in.u.at(row, cell.e), present, wide);
    delta.load(in.delta.at(row, cell.e), present, wide, kNoDelta);
    if (in.z) z.load(in.z.at(row, cell.e), present, wide);
    dy.load(in.dy.at(row, cell.e), present, wide);
    start = present > 0 && *in.doc_begin.at(block.b, t) == t;
  }
};

// The warps' sums of a span's tokens, added up in order.
template <class T>
__device__ void store_span_sums(const ScanInput<T>& in, const BackwardOutput<T>& out,
                                const ScanBlock& block, int span, char* histories) {
  const int begin = span * kSpan, count = min(kSpan, block.end - begin);
  const int tile_row = block.tile * in.batch * in.tokens + block.row + begin;
  const int warps = in.width / kWarpChannels;
  for (int i = threadIdx.x; i < count * kSums / 4; i += blockDim.x) {
    const int token = i / (kSums / 4), first = i % (kSums / 4) * 4;
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int warp = 0; warp < kMaxWidth / kWarpChannels; ++warp) {
      if (warp >= warps) break;
      const char* const slot =
          histories + warp * History<T>::kBytes + (token + 1) * History<T>::kSlot;
      const float4 part = *reinterpret_cast<const float4*>(slot + first * sizeof(float));
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    *reinterpret_cast<float4*>(out.dBC.at(tile_row + token, first)) = sum;
  }
}

// The parameters' gradients of 8 channels, over the tokens of one cell.
struct CellSums {
  float ddt_bias[kEight] = {}, dD[kEight] = {};
};

// What the walk needs of a cell.
template <class T>
__device__ void prepare_cell(const ScanInput<T>& in, const BackwardCell<T>& now,
                             const ScanCell& cell, BackwardRoom<T>& room) {
  float bias[kEight], dt[kEight], dsum[kEight];
  load_eight(room.dt_bias + cell.column, bias);
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    dt[i] = ScanStep(now.delta[i] + bias[i]).dt;
    dsum[i] = now.dy[i];
  }
  if (in.z) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) dsum[i] *= silu(now.z[i]);
  }
#pragma unroll
  for (int i = 0; i < kEight; i += 2) {
    room.pairs.two_of(cell, i) = {now.start ? kStartDt : dt[i], now.start ? kStartDt : dt[i + 1],
                                  dt[i] * now.u[i], dt[i + 1] * now.u[i + 1]};
  }
#pragma unroll
  for (int i = 0; i < kEight; i += 4)
    room.dsum.four(cell, i) = {dsum[i], dsum[i + 1], dsum[i + 2], dsum[i + 3]};
}

// What the walk leaves of a cell.
struct WalkedCell {
  float sum[kEight];    // over n of C h
  float ddt_u[kEight];  // gradient of dt u
  float dt[kEight];     // of the decays
  float ddt[kEight];    // its gradient

  template <class T>
  __device__ WalkedCell(const ScanCell& cell, BackwardRoom<T>& room) {
#pragma unroll
    for (int i = 0; i < kEight; i += 4) {
      const float4 sums = room.sum.four(cell, i), dinputs = room.dsum.four(cell, i);
      sum[i] = sums.x, sum[i + 1] = sums.y, sum[i + 2] = sums.z, sum[i + 3] = sums.w;
      ddt_u[i] = dinputs.x, ddt_u[i + 1] = dinputs.y;
      ddt_u[i + 2] = dinputs.z, ddt_u[i + 3] = dinputs.w;
    }
#pragma unroll
    for (int i = 0; i < kEight; i += 2) {
      const float4 two = room.pairs.two_of(cell, i);
      dt[i] = two.x, dt[i + 1] = two.y, ddt[i] = two.z, ddt[i + 1] = two.w;
    }
  }
  // Blocks of states, but for the last, leave their sums behind; the others add them.
  template <class T>
  __device__ void add_blocks(const BackwardOutput<T>& out, int row, int e, int present) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      if (i >= present) continue;
      float* const of[3] = {out.sum_y.at(row, e + i), out.sum_dinput.at(row, e + i),
                            out.sum_ddt.at(row, e + i)};
      if (!out.first) sum[i] += *of[0], ddt_u[i] += *of[1], ddt[i] += *of[2];
      if (!out.last) *of[0] = sum[i], *of[1] = ddt_u[i], *of[2] = ddt[i];
    }
  }
};

// Where a document starts the walk had another dt than the gradients have.
template <class T>
__device__ void restore_steps(const BackwardCell<T>& now, const ScanCell& cell,
                              BackwardRoom<T>& room) {
  if (!now.start) return;
#pragma unroll
  for (int i = 0; i < kEight; i += 2) {
    float4& two = room.pairs.two_of(cell, i);
    two.x = ScanStep(now.delta[i] + room.dt_bias[cell.column + i]).dt;
    two.y = ScanStep(now.delta[i + 1] + room.dt_bias[cell.column + i + 1]).dt;
  }
}

// What a cell writes. Not kWide: states may come in several blocks. Branches are around channels,
// not within: so their chains run beside each other.
template <bool kWide, class T>
__device__ void finish_cell(const ScanInput<T>& in, const BackwardOutput<T>& out,
                            const BackwardCell<T>& now, const ScanCell& cell, int row, int present,
                            BackwardRoom<T>& room, CellSums& sums) {
  restore_steps(now, cell, room);
  WalkedCell walked(cell, room);
  if (!kWide && in.N > kStates) {
    walked.add_blocks(out, row, cell.e, present);
    if (!out.last) return;
  }
  float bias[kEight], D[kEight];
  load_eight(room.dt_bias + cell.column, bias), load_eight(room.D + cell.column, D);
  float gate[kEight], gate_slope[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) gate[i] = 1, gate_slope[i] = 0;
  if (in.z) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      const float z = now.z[i], s = sigmoid(z);
      gate[i] = z * s, gate_slope[i] = fmaf(gate[i], 1 - s, s);
    }
  }
  float du[kEight], ddelta[kEight], dz[kEight], y[kEight];
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const float u = now.u[i], dy = now.dy[i], dsum = dy * gate[i];
    const float sum = fmaf(D[i], u, walked.sum[i]);
    dz[i] = dy * sum * gate_slope[i];
    y[i] = sum * gate[i];
    // The last factor is the slope of softplus.
    ddelta[i] = fmaf(u, walked.ddt_u[i], walked.ddt[i]) * sigmoid(now.delta[i] + bias[i]);
    du[i] = fmaf(walked.dt[i], walked.ddt_u[i], D[i] * dsum);
    sums.ddt_bias[i] += ddelta[i];
    sums.dD[i] = fmaf(dsum, u, sums.dD[i]);
  }
  const bool wide = kWide || out.wide;
  Eight<T>::of(du).store(out.du.at(row, cell.e), present, wide);
  Eight<T>::of(ddelta).store(out.ddelta.at(row, cell.e), present, wide);
  if (out.dz) Eight<T>::of(dz).store(out.dz.at(row, cell.e), present, wide);
  if (out.y) Eight<T>::of(y).store(out.y.at(row, cell.e), present, wide);
}

// The piece's share of the parameters' gradients.
template <class T>
__device__ void store_parameters(const ScanInput<T>& in, const BackwardOutput<T>& out,
                                 const ScanBlock& block, const ScanCell& cell,
                                 const BackwardWalk<T>& walk, const CellSums& sums,
                                 SpanPairs& pairs) {
  const int first_row = block.map * (kStates + 2);
  const ScanWalker& me = walk.me;
#pragma unroll
  for (int c = 0; c < kPair; ++c) {
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      if (me.active(c))
        *out.parameters.at(first_row + me.lane * kOwn + n, me.e(c)) =
            walk.dA[c][n] * me.A[c][n] * kLn2;
    }
  }
#pragma unroll
  for (int i = 0; i < kEight; i += 2) {
    pairs.two_of(cell, i) = {sums.ddt_bias[i], sums.ddt_bias[i + 1], sums.dD[i], sums.dD[i + 1]};
  }
  __syncthreads();
  if (me.lane >= kPair || !me.active(me.lane)) return;
  float ddt_bias = 0, dD = 0;
  for (int token = 0; token < kSpan / kCells; ++token) {
    const float4 two = pairs.two(token, me.column);
    ddt_bias += me.lane == 0 ? two.x : two.y, dD += me.lane == 0 ? two.z : two.w;
  }
  *out.parameters.at(first_row + kStates, me.e(me.lane)) = ddt_bias;
  *out.parameters.at(first_row + kStates + 1, me.e(me.lane)) = dD;
}

// Bound by instructions: about 27 a token, channel and state with what a channel needs besides, of
// those 2.5 exponentials; an H100 issues 60 % of what it could, two warps a scheduler. More do not
// fit: histories fill shared memory, and two channels a thread the registers. 16 bytes in bf16, and
// 4 of the kept states, are a fraction of that. kWide: all moves by 16 bytes, and a channel has
// kStates states; that the loop holds no other path is worth 7 %.
template <class T, bool kWide>
__global__ void __launch_bounds__(kMaxScanThreads, std::is_same_v<T, float> ? 1 : 2)
    backward_kernel(ScanInput<T> in, BackwardOutput<T> out) {
  extern __shared__ __align__(128) char shared[];
  BackwardRoom<T>& room = *reinterpret_cast<BackwardRoom<T>*>(shared);
  char* const histories = shared + sizeof(BackwardRoom<T>);
  const bool wide = kWide || out.wide, wide_BC = kWide || out.wide_BC;
  const bool wide_states = kWide || in.wide;
  const ScanBlock block(in);
  const ScanCell cells[kCells] = {{in, block, 0}, {in, block, 1}};
  const ScanWalker me(in, block);
  BackwardWalk<T> walk{.me = me,
                       .bc = room.bc,
                       .steps = room.pairs.column(me.column),
                       .dsums = room.dsum.column(me.column),
                       .sums = room.sum.column(me.column),
                       .history = History<T>(histories + threadIdx.x / kWarp * History<T>::kBytes)};
  if (me.lane < kPair) {
    room.dt_bias[me.column + me.lane] = in.dt_bias[me.e(me.lane)];
    room.D[me.column + me.lane] = in.D[me.e(me.lane)];
  }
  if (out.entering) {
    const auto place = [&](int e) { return out.entering.at(block.map * in.channels + e); };
    me.load_states(place, in.states, wide_states, walk.carried);
  }
  CellSums sums;
  __syncthreads();
  for (int span = block.last_span; span >= block.first_span; --span) {
    BackwardCell<T> now[kCells];
#pragma unroll
    for (int i = 0; i < kCells; ++i) now[i].load(in, block, cells[i], span, wide);
    typename SpanBC<T>::Fetched fetched;
    fetched.load(in, block, span, wide_BC);
    const int state_row = block.b * int(in.pieces.rows) + span;
    float h[kPair][kOwn];
    me.load_states([&](int e) { return out.span_states.at(state_row, e * in.N); }, in.states,
                   wide_states, h);
#pragma unroll
    for (int i = 0; i < kCells; ++i) prepare_cell(in, now[i], cells[i], room);
    room.bc.put(fetched);
    __syncthreads();
    if (span > block.first_span) {
#pragma unroll
      for (int i = 0; i < kCells; ++i) prefetch_cell(in, block, cells[i], span - 1);
#pragma unroll
      for (int c = 0; c < kPair; ++c)
        prefetch_to_l2(out.span_states.at(state_row - 1, me.e(c) * in.N));
    }
    walk.run(room, h);
    __syncthreads();
    store_span_sums(in, out, block, span, histories);
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      finish_cell<kWide>(in, out, now[i], cells[i], block.row + span * kSpan + cells[i].token,
                         cells[i].present_in(span * kSpan, block.end), room, sums);
    }
  }
  if (out.dinitial && block.first_span == 0) {
    const auto place = [&](int e) { return out.dinitial.at(block.b * in.channels + e); };
    me.store_states(place, in.states, wide_states, walk.carried);
  }
  store_parameters(in, out, block, cells[0], walk, sums, room.pairs);
}

// dB and dC of a token: the tiles' sums in order. A thread has four states.
template <class T>
__global__ void add_tiles_kernel(const float* partial, int64_t tiles, int64_t rows, int states,
                                 ScanColumns<T> dB, ScanColumns<T> dC) {
  constexpr int kFours = kSums / 4;
  const int64_t i = blockIdx.x * int64_t(kReduceThreads) + threadIdx.x;
  if (i >= rows * kFours) return;
  const int row = int(i / kFours);
  const float4* const from = reinterpret_cast<const float4*>(partial);
  float4 sum = {0, 0, 0, 0};
#pragma unroll 8
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const float4 part = from[tile * rows * kFours + i];
    sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
  }
  const int column = int(i % kFours) * 4;
  T* const to = column < kStates ? dB.at(row, column) : dC.at(row, column - kStates);
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    if (column % kStates + n < states) to[n] = from_float<T>(values[n]);
  }
}

// The parameters' gradients: the pieces' sums in order. A thread has one sum of a channel.
__global__ void add_parameters_kernel(const float* partial, int64_t maps, int64_t channels,
                                      int states, bool last, ScanColumns<float> dA_log,
                                      float* ddt_bias, float* dD) {
  const int64_t i = blockIdx.x * int64_t(kReduceThreads) + threadIdx.x;
  if (i >= (kStates + 2) * channels) return;
  const int which = int(i / channels), e = int(i % channels);
  if (which < kStates ? which >= states : !last) return;
  float sum = 0;
#pragma unroll 8
  for (int64_t map = 0; map < maps; ++map) sum += partial[map * (kStates + 2) * channels + i];
  float* const to = which < kStates    ? dA_log.at(e, which)
                    : which == kStates ? ddt_bias + e
                                       : dD + e;
  *to += sum;
}

template <class T>
void backward(const Context& ctx, const SelectiveScanBackward& args,
              const ConstTensorView& entering, const ScanSums& sums, const ScanPartials& partials) {
  for (int64_t first = 0; first < args.A_log.dim(1); first += kStates) {
    const Dims& dims = args.u.dims;
    ScanInput<T> in(args, first, scan_width(dims[0], dims[1], dims[2]));
    in.check_wide(args.span_states), in.check_wide(entering), in.check_wide(args.dinitial_state);
    const bool last = first + kStates >= in.N;
    const bool wide = scan_rows_wide(dims[2], args.u, args.delta, args.z, args.dy, args.du,
                                     args.ddelta, args.dz, args.y);
    const bool wide_BC = in.has_wide_states(first) && scan_rows_wide(0, args.B, args.C);
    const bool all_wide = scan_moves_packs(dims[2], in.N) && wide && wide_BC && in.wide;
    const auto kernel = all_wide ? backward_kernel<T, true> : backward_kernel<T, false>;
    launch(ctx, "selective_scan_backward", in.grid(kChannelThreads, shared_bytes<T>(in.width)),
           kernel, in,
           BackwardOutput<T>{.span_states = {args.span_states, first},
                             .entering = {entering, first},
                             .du = args.du,
                             .ddelta = args.ddelta,
                             .dz = args.dz,
                             .y = args.y,
                             .dinitial = {args.dinitial_state, first},
                             .dBC = partials.dBC.matrix(),
                             .parameters = partials.parameters.matrix(),
                             .sum_y = sums.y,
                             .sum_dinput = sums.dinput,
                             .sum_ddt = sums.ddt,
                             .first = first == 0,
                             .last = last,
                             .wide = wide,
                             .wide_BC = wide_BC});
    const int64_t rows = int64_t{in.batch} * in.tokens;
    launch(
        ctx, "selective_scan_backward",
        {.blocks = unsigned(ceil_div(rows * kSums / 4, kReduceThreads)), .threads = kReduceThreads},
        add_tiles_kernel<T>, pointer<float>(partials.dBC), in.tiles, rows, in.states,
        ScanColumns<T>(args.dB, first), ScanColumns<T>(args.dC, first));
    launch(ctx, "selective_scan_backward",
           {.blocks = unsigned(ceil_div((kStates + 2) * in.channels, kReduceThreads)),
            .threads = kReduceThreads},
           add_parameters_kernel, pointer<float>(partials.parameters), in.batch * in.pieces.count,
           in.channels, in.states, last, ScanColumns<float>(args.dA_log, first),
           pointer<float>(args.ddt_bias), pointer<float>(args.dD));
  }
}

}  // namespace

void selective_scan_backward(const Context& ctx, const SelectiveScanBackward& args,
                             const ScanMaps& maps, const ScanSums& sums,
                             const ScanPartials& partials) {
  if (args.u.numel() == 0) return;
  dispatch_float(args.u.dtype, [&]<class T>() {
    if (maps.state) {
      launch_reverse_folds<T>(ctx,
                              {.dy = args.dy,
                               .delta = args.delta,
                               .dt_bias = args.dt_bias,
                               .A_log = args.A_log,
                               .C = args.C,
                               .z = args.z,
                               .doc_begin = args.doc_begin,
                               .dinitial_state = maps.state},
                              maps.dt_sum);
      launch_chain(ctx,
                   {.A_log = args.A_log,
                    .doc_begin = args.doc_begin,
                    .entering = args.dfinal_state,
                    .reverse = true},
                   maps);
    }
    backward<T>(ctx, args, maps.state ? ConstTensorView(maps.state) : args.dfinal_state, sums,
                partials);
  });
}

}  // namespace sluice::cuda
