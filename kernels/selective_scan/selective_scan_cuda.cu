// The forward and the step.
#include "kernels/selective_scan/selective_scan_cuda.cuh"

namespace sluice::cuda {

namespace {

constexpr int kStepThreads = 128;

template <class T>
struct ForwardOutput {
  ScanColumns<T> y;
  ScanColumns<const float> initial;  // a row a piece and channel; absent: zeros
  ScanColumns<float> span_states;    // optional
  ScanColumns<float> final_state;    // optional
  ScanColumns<float> sum;            // over blocks of states, where there are several
  bool first, last;                  // of those blocks

  __device__ ForwardOutput of_channel(int e) const {
    ForwardOutput out = *this;
    out.y = y.from(e), out.sum = sum.from(e);
    return out;
  }
};

// y of a token from the sum over this block's states. Nothing is written unless `present`.
template <bool kSeveral, class T>
__device__ void finish_token(const ForwardOutput<T>& out, int row, float sum, float skip,
                             float gate, bool present) {
  if (kSeveral && !out.first && present) sum += *out.sum.at(row);
  if (kSeveral && !out.last) {
    if (present) *out.sum.at(row) = sum;
    return;
  }
  store_if(present, out.y.at(row), (sum + skip) * gate);
}

// Bound by exponentials: N + 4 of the 16 a cycle that a processor can, and 5 N + 30 of its 128
// instructions, a token and channel. 8 bytes in bf16 are less than that. kSeveral: blocks of
// states.
template <class T, bool kSeveral>
__global__ void __launch_bounds__(kMaxScanThreads, 2)
    forward_kernel(ScanInput<T> in, ForwardOutput<T> all) {
  __shared__ SpanBC staged[2];
  const ScanThread me(in);
  const ScanChannel channel(in, me.e);
  const ForwardOutput<T> out = all.of_channel(me.e);
  const ScanColumns<const T> of_u = in.u.from(me.e), of_delta = in.delta.from(me.e);
  const ScanColumns<const T> of_z = in.z.from(me.e);
  float h[kStates];
  load_states_or_zeros(out.initial, me.map_row, in.states, in.wide, h);
  struct Group : ScanInputs {
    float skip[kScanAhead], gate[kScanAhead];
  };
  ScanTokens<T> u, delta, z;  // two groups of tokens ahead of the states; `next` is one ahead
  const auto load = [&](int t) {
    u.load(of_u, me.row + t, me.row + me.end);
    delta.load(of_delta, me.row + t, me.row + me.end, kNoDelta);
    z.load(of_z, me.row + t, me.row + me.end);
  };
  const auto prepare = [&](unsigned starts, int first) {
    Group group;
#pragma unroll
    for (int i = 0; i < kScanAhead; ++i) {
      const float dt = ScanStep(delta[i] + channel.dt_bias).dt;
      group.set(i, dt, u[i], starts >> (first + i) & 1);
      group.skip[i] = channel.D * u[i];
      group.gate[i] = in.z ? silu(z[i]) : 1.0f;
    }
    return group;
  };
  staged[0].stage(in, me.b, me.first_span);
  unsigned starts = document_starts(in, me.b, me.first_span);
  load(me.first_span * kSpan);
  Group next = prepare(starts, 0);
  load(me.first_span * kSpan + kScanAhead);
  ScanDecays decays(channel, next.decay_dt[0]);
  for (int span = me.first_span; span <= me.last_span; ++span) {
    __syncthreads();
    const int turn = span - me.first_span, begin = span * kSpan;
    if (span < me.last_span) {
      staged[(turn + 1) & 1].stage(in, me.b, span + 1);
      prefetch_span(in, of_u, me.b, span + 1), prefetch_span(in, of_delta, me.b, span + 1);
      prefetch_span(in, of_z, me.b, span + 1);
    }
    const SpanBC& bc = staged[turn & 1];
    const unsigned next_starts = document_starts(in, me.b, span + 1);
    if (out.span_states && me.active) {
      float* const to = out.span_states.at(me.b * int(in.pieces.rows) + span, me.e * in.N);
      store_states(to, in.states, in.wide, h);
    }
    const int count = min(kSpan, me.end - begin);
    for (int first = 0; first < count; first += kScanAhead) {
      const Group now = next;
      const int behind = first + kScanAhead;
      next = prepare(behind < kSpan ? starts : next_starts, behind % kSpan);
      load(begin + behind + kScanAhead);
#pragma unroll
      for (int i = 0; i < kScanAhead; ++i) {
        const int token = first + i;
        const float sum = decays.advance_and_dot(channel, bc, token, now.dt_u[i],
                                                 now.decay_dt_behind(i, next), h);
        finish_token<kSeveral>(out, me.row + begin + token, sum, now.skip[i], now.gate[i],
                               me.active && token < count);
      }
    }
    starts = next_starts;
  }
  if (out.final_state && me.active && me.end == in.tokens)
    store_states(out.final_state.at(me.state_row), in.states, in.wide, h);
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
    ScanInput<T> in(args, first);
    in.check_wide(initial), in.check_wide(args.span_states), in.check_wide(args.final_state);
    const auto kernel = in.N > kStates ? forward_kernel<T, true> : forward_kernel<T, false>;
    launch(ctx, "selective_scan_forward", in.grid(), kernel, in,
           ForwardOutput<T>{.y = args.y,
                            .initial = {initial, first},
                            .span_states = {args.span_states, first},
                            .final_state = {args.final_state, first},
                            .sum = sums.y,
                            .first = first == 0,
                            .last = first + kStates >= in.N});
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
