// The forward and the step.
#include "kernels/selective_scan/selective_scan_walk.cuh"

namespace sluice::cuda {

namespace {

constexpr int kStepThreads = 128;
constexpr int kForwardResident = 4;  // blocks of a processor

template <class T>
struct ForwardOutput {
  ScanColumns<T> y;
  ScanColumns<const float> initial;  // a row a piece and channel; absent: zeros
  ScanColumns<float> span_states;    // optional
  ScanColumns<float> final_state;    // optional
  ScanColumns<float> sum;            // over blocks of states, where there are several
  bool first, last;                  // of those blocks
  bool wide, wide_BC;                // whether activations move by 16 bytes; B and C
};

// What a cell needs of its span.
template <class T>
struct ForwardCell {
  Eight<T> u, delta, z;
  bool start;

  __device__ void load(const ScanInput<T>& in, const ScanBlock& block, const ScanCell& cell,
                       int span, bool wide) {
    const int present = cell.present_in(span * kSpan, block.end);
    const int row = block.row + span * kSpan + cell.token;
    u.load(in.u.at(row, cell.e), present, wide);
    delta.load(in.delta.at(row, cell.e), present, wide, kNoDelta);
    if (in.z) z.load(in.z.at(row, cell.e), present, wide);
    start = present > 0 &&
            *in.doc_begin.at(block.b, span * kSpan + cell.token) == span * kSpan + cell.token;
  }
};

// The walk: pairs hold dt and dt u of a token; its sum over n of C h takes the place of dt.
template <class T>
__device__ void walk_forward(const ScanWalker& me, const SpanBC<T>& bc, SpanPairs& pairs,
                             float (&h)[kPair][kOwn]) {
  const SpanPairs::Column steps = pairs.column(me.column);
  const auto leave = [&](int token, float2 sums) {
    __syncwarp();  // all four have read the steps
    reinterpret_cast<float2&>(steps[token]) = sums;
  };
  walk_span(
      me, steps, bc, h, [](int, int) {}, leave);
}

// What the walk needs of a cell.
template <class T>
__device__ void prepare_cell(const ForwardCell<T>& now, const ScanCell& cell, const float* dt_bias,
                             SpanPairs& pairs) {
  float bias[kEight], dt[kEight];
  load_eight(dt_bias, bias);
#pragma unroll
  for (int i = 0; i < kEight; ++i) dt[i] = ScanStep(now.delta[i] + bias[i]).dt;
#pragma unroll
  for (int i = 0; i < kEight; i += 2) {
    pairs.two_of(cell, i) = {now.start ? kStartDt : dt[i], now.start ? kStartDt : dt[i + 1],
                             dt[i] * now.u[i], dt[i + 1] * now.u[i + 1]};
  }
}

// y of a cell. Not kWide: states may come in several blocks.
template <bool kWide, class T>
__device__ void finish_cell(const ScanInput<T>& in, const ForwardOutput<T>& out,
                            const ForwardCell<T>& now, const ScanCell& cell, int row, int present,
                            const float* all_D, SpanPairs& pairs) {
  float sum[kEight], D[kEight], y[kEight];
  load_eight(all_D, D);
#pragma unroll
  for (int i = 0; i < kEight; i += 2) {
    const float4 two = pairs.two_of(cell, i);
    sum[i] = two.x, sum[i + 1] = two.y;
  }
  if (!kWide && in.N > kStates) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      if (i >= present) continue;
      if (!out.first) sum[i] += *out.sum.at(row, cell.e + i);
      if (!out.last) *out.sum.at(row, cell.e + i) = sum[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) y[i] = fmaf(D[i], now.u[i], sum[i]);
  if (in.z) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) y[i] *= silu(now.z[i]);
  }
  if (!kWide && !out.last) return;
  Eight<T>::of(y).store(out.y.at(row, cell.e), present, kWide || out.wide);
}

// Bound by instructions, about 10 of the 128 a cycle that a processor can, and by
// exponentials, 1.25 of its 16, a token, channel and state; by what goes from shared memory to
// registers almost as much. 8 bytes in bf16 are less than that. kWide: all moves by 16 bytes, and a
// channel has kStates states.
template <class T, bool kWide>
__global__ void __launch_bounds__(kMaxScanThreads, kForwardResident)
    forward_kernel(ScanInput<T> in, ForwardOutput<T> out) {
  __shared__ SpanBC<T> bc;
  __shared__ SpanPairs pairs;
  __shared__ alignas(16) float dt_bias[kMaxWidth];
  __shared__ alignas(16) float D[kMaxWidth];
  const bool wide = kWide || out.wide, wide_BC = kWide || out.wide_BC;
  const bool wide_states = kWide || in.wide;
  const ScanBlock block(in);
  const ScanCell cells[kCells] = {{in, block, 0}, {in, block, 1}};
  const ScanWalker me(in, block);
  if (me.lane < kPair) {
    dt_bias[me.column + me.lane] = in.dt_bias[me.e(me.lane)];
    D[me.column + me.lane] = in.D[me.e(me.lane)];
  }
  float h[kPair][kOwn] = {};
  if (out.initial) {
    const auto place = [&](int e) { return out.initial.at(block.map * in.channels + e); };
    me.load_states(place, in.states, wide_states, h);
  }
  ForwardCell<T> now[kCells];
  typename SpanBC<T>::Fetched fetched;
  const auto load = [&](int span) {
#pragma unroll
    for (int i = 0; i < kCells; ++i) now[i].load(in, block, cells[i], span, wide);
    fetched.load(in, block, span, wide_BC);
  };
  load(block.first_span);
  __syncthreads();
  for (int span = block.first_span; span <= block.last_span; ++span) {
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      prepare_cell(now[i], cells[i], dt_bias + cells[i].column, pairs);
      if (span < block.last_span) prefetch_cell(in, block, cells[i], span + 1);
    }
    bc.put(fetched);
    __syncthreads();
    if (out.span_states) {
      const int row = block.b * int(in.pieces.rows) + span;
      const auto place = [&](int e) { return out.span_states.at(row, e * in.N); };
      me.store_states(place, in.states, wide_states, h);
    }
    walk_forward(me, bc, pairs, h);
    const ForwardCell<T> current[kCells] = {now[0], now[1]};
    if (span < block.last_span) load(span + 1);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      finish_cell<kWide>(in, out, current[i], cells[i], block.row + span * kSpan + cells[i].token,
                         cells[i].present_in(span * kSpan, block.end), D + cells[i].column, pairs);
    }
  }
  if (out.final_state && block.end == in.tokens) {
    const auto place = [&](int e) { return out.final_state.at(block.b * in.channels + e); };
    me.store_states(place, in.states, wide_states, h);
  }
}

template <class T>
struct StepTensors {
  ScanColumns<const T> u, delta, B, C, z;
  const float* dt_bias;
  const float* D;
  ScanColumns<const float> A_log;
  ScanColumns<float> state;
  ScanColumns<T> y;
  int64_t batch, channels, N;
};

template <class T>
__global__ void step_kernel(StepTensors<T> tensors) {
  const int64_t i = blockIdx.x * int64_t(kStepThreads) + threadIdx.x;
  if (i >= tensors.batch * tensors.channels) return;
  const int b = int(i / tensors.channels), e = int(i % tensors.channels);
  const float u = to_float(*tensors.u.at(b, e));
  const float dt = ScanStep(to_float(*tensors.delta.at(b, e)) + tensors.dt_bias[e]).dt;
  float* const h = tensors.state.at(int(i));
  float sum = tensors.D[e] * u;
  for (int n = 0; n < tensors.N; ++n) {
    const float decay = __expf(-dt * expf(*tensors.A_log.at(e, n)));
    h[n] = fmaf(decay, h[n], dt * u * to_float(*tensors.B.at(b, n)));
    sum = fmaf(to_float(*tensors.C.at(b, n)), h[n], sum);
  }
  if (tensors.z) {
    const float z = to_float(*tensors.z.at(b, e));
    sum *= z * sigmoid(z);
  }
  *tensors.y.at(b, e) = from_float<T>(sum);
}

template <class T>
void forward(const Context& ctx, const SelectiveScanForward& args, const ConstTensorView& initial,
             const ScanSums& sums) {
  for (int64_t first = 0; first < args.A_log.dim(1); first += kStates) {
    const Dims& dims = args.u.dims;
    ScanInput<T> in(args, first, scan_width(dims[0], dims[1], dims[2]));
    in.check_wide(initial), in.check_wide(args.span_states), in.check_wide(args.final_state);
    const bool wide = scan_rows_wide(dims[2], args.u, args.delta, args.z, args.y);
    const bool wide_BC = in.has_wide_states(first) && scan_rows_wide(0, args.B, args.C);
    const bool all_wide = scan_moves_packs(dims[2], in.N) && wide && wide_BC && in.wide;
    const auto kernel = all_wide ? forward_kernel<T, true> : forward_kernel<T, false>;
    launch(ctx, "selective_scan_forward", in.grid(kChannelThreads), kernel, in,
           ForwardOutput<T>{.y = args.y,
                            .initial = {initial, first},
                            .span_states = {args.span_states, first},
                            .final_state = {args.final_state, first},
                            .sum = sums.y,
                            .first = first == 0,
                            .last = first + kStates >= in.N,
                            .wide = wide,
                            .wide_BC = wide_BC});
  }
}

}  // namespace

void selective_scan_forward(const Context& ctx, const SelectiveScanForward& args,
                            const ScanMaps& maps, const ScanSums& sums) {
  if (args.u.numel() == 0) return;
  dispatch_float(args.u.dtype, [&]<class T>() {
    if (maps.state) {
      launch_folds<T>(ctx, {.u = args.u,
                            .delta = args.delta,
                            .dt_bias = args.dt_bias,
                            .A_log = args.A_log,
                            .B = args.B,
                            .doc_begin = args.doc_begin,
                            .state = maps.state,
                            .dt_sum = maps.dt_sum});
      launch_chain(
          ctx, {.A_log = args.A_log, .doc_begin = args.doc_begin, .entering = args.initial_state},
          maps);
    }
    forward<T>(ctx, args, maps.state ? ConstTensorView(maps.state) : args.initial_state, sums);
  });
}

void selective_scan_step(const Context& ctx, const SelectiveScanStep& args) {
  const int64_t B = args.u.dim(0), E = args.u.dim(1);
  dispatch_float(args.u.dtype, [&]<class T>() {
    const StepTensors<T> tensors{.u = args.u,
                                 .delta = args.delta,
                                 .B = args.B,
                                 .C = args.C,
                                 .z = args.z,
                                 .dt_bias = pointer<float>(args.dt_bias),
                                 .D = pointer<float>(args.D),
                                 .A_log = args.A_log,
                                 .state = args.state,
                                 .y = args.y,
                                 .batch = B,
                                 .channels = E,
                                 .N = args.A_log.dim(1)};
    launch(ctx, "selective_scan_step",
           {.blocks = unsigned(ceil_div(B * E, kStepThreads)), .threads = kStepThreads},
           step_kernel<T>, tensors);
  });
}

}  // namespace sluice::cuda
