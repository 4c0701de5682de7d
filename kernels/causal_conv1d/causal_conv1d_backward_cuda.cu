// B batch, T tokens, C channels, K taps
#include "kernels/causal_conv1d/causal_conv1d_cuda.cuh"
#include "kernels/core/row_blocks.h"
#include "kernels/device/column_sum.cuh"

namespace sluice::cuda {

namespace {

constexpr int kWidth = 4;  // channels of a lane: more would not leave registers for enough warps
constexpr int kAhead = 4;  // rows on their way at once
constexpr int kBlockThreads = kConvWarps * kWarp;
constexpr int kPlainThreads = 128;

template <class T>
struct Gradients {
  const T* dy;
  T* dx;
  T* dhalo;  // null: not asked for
  float* weight_partial;
  float* bias_partial;
  int64_t dy_stride, dx_stride, dhalo_stride;

  Gradients(const CausalConv1dBackward& args, const ConvPartials& partials)
      : dy(pointer<T>(args.dy)),
        dx(pointer<T>(args.dx)),
        dhalo(optional_pointer<T>(args.dhalo)),
        weight_partial(pointer<float>(partials.weight)),
        bias_partial(pointer<float>(partials.bias)),
        dy_stride(args.dy.row_stride),
        dx_stride(args.dx.row_stride),
        dhalo_stride(args.dhalo.row_stride) {}

  // Where dx of token `position` goes; below 0 to the halo, or nowhere (null).
  __device__ T* dx_row(int64_t b, int64_t position, int64_t tokens, int K) const {
    if (position >= 0) return dx + (b * tokens + position) * dx_stride;
    return dhalo == nullptr ? nullptr : dhalo + (b * (K - 1) + K - 1 + position) * dhalo_stride;
  }
};

// dy through y = silu(v).
__device__ float through_silu(float dy, float v) {
  const float s = sigmoid(v);
  return dy * s * fmaf(v, 1.0f - s, 1.0f);
}

// One lane's channels while it walks down the tokens: the window of x, the sums of the parameter
// gradients, and dx of the last three tokens, to which later tokens still add.
struct BackwardWalk {
  ConvWindow<kWidth> window;
  float dweight[kConvTaps][kWidth] = {};
  float dbias[kWidth] = {};
  ConvRow<kWidth> pending[kConvTaps - 1] = {};  // dx of the token 1, 2, 3 before

  // dy of a token whose document began `age` tokens ago. Parameter gradients count if `own`.
  // Returns dx of the token 3 before, which is complete.
  __device__ ConvRow<kWidth> advance(const ConvRow<kWidth>& x, const ConvRow<kWidth>& dy, int age,
                                     bool own, bool with_silu) {
    if (age == 0) window.forget();
    ConvRow<kWidth> done, latest;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      float dv = dy.values[i];
      if (with_silu) dv = through_silu(dv, window.pre_activation(i, x.values[i]));
      if (own) {
        dbias[i] += dv;
        dweight[0][i] = fmaf(dv, x.values[i], dweight[0][i]);
#pragma unroll
        for (int j = 1; j < kConvTaps; ++j)
          dweight[j][i] = fmaf(dv, window.before[j - 1].values[i], dweight[j][i]);
      }
      latest.values[i] = window.weight[0][i] * dv;
#pragma unroll
      for (int j = 1; j < kConvTaps; ++j) {
        float& sum = pending[j - 1].values[i];
        if (age >= j) sum = fmaf(window.weight[j][i], dv, sum);
      }
      done.values[i] = pending[kConvTaps - 2].values[i];
    }
#pragma unroll
    for (int j = kConvTaps - 2; j > 0; --j) pending[j] = pending[j - 1];
    pending[0] = latest;
    window.push(x);
    return done;
  }
};

// The parameter gradients of a block's warps, added up in order.
__device__ void store_partials(const BackwardWalk& walk, const ConvPiece& piece, int64_t block,
                               int64_t C, float* weight_partial, float* bias_partial) {
  constexpr int kSums = kConvTaps + 1, kChannels = kWarp * kWidth;
  __shared__ float sums[kConvWarps][kSums][kChannels];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
#pragma unroll
    for (int j = 0; j < kConvTaps; ++j)
      sums[warp][kConvTaps - 1 - j][lane * kWidth + i] = walk.dweight[j][i];
    sums[warp][kConvTaps][lane * kWidth + i] = walk.dbias[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSums * kChannels; i += kBlockThreads) {
    const int k = i % kSums, channel = i / kSums;
    const int64_t c = piece.tile_begin + channel;
    if (c >= C) continue;
    float sum = 0;
#pragma unroll
    for (int other = 0; other < kConvWarps; ++other) sum += sums[other][k][channel];
    if (k < kConvTaps) {
      weight_partial[(block * C + c) * kConvTaps + k] = sum;
    } else {
      bias_partial[block * C + c] = sum;
    }
  }
}

// Memory-bound: 6 T C bytes in bf16. A lane walks down its channels; dx of a token is complete
// three tokens later, so a warp reads x of 3 rows before its own, and x and dy of 3 rows after.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, 4)
    backward_kernel(ConvInput<T> in, Gradients<T> out, int64_t tiles) {
  using Row = Channels<T, kWidth>;
  const ConvPiece piece(in.B, in.tokens, in.C, kWidth, kConvBackwardRows, tiles);
  const int lane = threadIdx.x % kWarp;
  const int64_t b = min(piece.b, in.B - 1);
  const int count = piece.count > 0 ? int(piece.count) : 0;
  const int rows = count > 0 ? count + kConvTaps - 1 : 0;                 // walked
  const int readable = int(min(int64_t(rows), in.tokens - piece.begin));  // with tokens behind them
  const int64_t first_row = b * in.tokens + piece.begin;
  const T* const x = in.x + first_row * in.x_stride + piece.c;
  const T* const dy = out.dy + first_row * out.dy_stride + piece.c;
  const int64_t first_age = count > 0 ? in.age(b, piece.begin) : 0;
  BackwardWalk walk{.window = {in, b, piece.begin, first_age, piece.c}};
  int ages = 0;  // of the rows that begin at a multiple of the warp, lane by lane
  for (int begin = 0; begin < rows; begin += kAhead) {
    Row x_rows[kAhead] = {}, dy_rows[kAhead] = {};
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i >= readable) break;
      x_rows[i] = Row::load(x + (begin + i) * in.x_stride);
      dy_rows[i] = Row::load(dy + (begin + i) * out.dy_stride);
    }
    if (begin % kWarp == 0) {
      const int row = min(begin + lane, readable - 1);
      ages = int(min(in.age(b, piece.begin + row), int64_t(kConvTaps)));
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int row = begin + i;
      if (row >= rows) break;
      ConvRow<kWidth> x_row, dy_row;
      x_row.set(x_rows[i]), dy_row.set(dy_rows[i]);
      const int age = __shfl_sync(kFullWarp, ages, row % kWarp);
      const ConvRow<kWidth> done = walk.advance(x_row, dy_row, age, row < count, in.silu);
      // What lies before this warp's first token belongs to another warp, or to the halo.
      const int64_t position = piece.begin + row - (kConvTaps - 1);
      if (!piece.active || (row < kConvTaps - 1 && piece.begin > 0)) continue;
      T* const to = out.dx_row(b, position, in.tokens, kConvTaps);
      if (to == nullptr) continue;
      Row stored;
#pragma unroll
      for (int channel = 0; channel < kWidth; ++channel)
        stored.values[channel] = from_float<T>(done.values[channel]);
      stored.store(to + piece.c);
    }
  }
  store_partials(walk, piece, blockIdx.x / tiles, in.C, out.weight_partial, out.bias_partial);
}

// The gradient of v at a token, for the plain kernels.
template <class T>
__device__ float gradient_of_v(const ConvInput<T>& in, const Gradients<T>& out, int64_t b,
                               int64_t t, int64_t c) {
  const float dy = to_float(out.dy[(b * in.tokens + t) * out.dy_stride + c]);
  return in.silu ? through_silu(dy, in.pre_activation(b, t, c)) : dy;
}

// Any number of taps, any alignment: a thread an element of dx or dhalo.
template <class T>
__global__ void dx_plain_kernel(ConvInput<T> in, Gradients<T> out, int halo) {
  const int64_t positions = in.tokens + halo;
  const int64_t i = blockIdx.x * int64_t(kPlainThreads) + threadIdx.x;
  if (i >= in.B * positions * in.C) return;
  const int64_t c = i % in.C, position = i / in.C % positions - halo, b = i / in.C / positions;
  float sum = 0;
  for (int64_t t = max(position, int64_t{0}); t < min(position + in.K, in.tokens); ++t) {
    const int j = int(t - position);
    if (in.age(b, t) < j) break;
    const float weight = to_float(in.weight[c * in.weight_stride + in.K - 1 - j]);
    sum = fmaf(weight, gradient_of_v(in, out, b, t, c), sum);
  }
  out.dx_row(b, position, in.tokens, in.K)[c] = from_float<T>(sum);
}

// A thread owns a channel in one block of rows, and so its sums in memory.
template <class T>
__global__ void dweight_plain_kernel(ConvInput<T> in, Gradients<T> out, RowBlocks blocks) {
  const int64_t c = blockIdx.x * int64_t(kPlainThreads) + threadIdx.x;
  if (c >= in.C) return;
  const int64_t block = blockIdx.y;
  float* const dweight = out.weight_partial + (block * in.C + c) * in.K;
  for (int k = 0; k < in.K; ++k) dweight[k] = 0;
  float dbias = 0;
  for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
    const int64_t b = row / in.tokens, t = row % in.tokens, age = in.age(b, t);
    const float dv = gradient_of_v(in, out, b, t, c);
    for (int j = 0; j < in.K; ++j) dweight[in.K - 1 - j] += dv * in.tap(b, t, age, j, c);
    dbias += dv;
  }
  out.bias_partial[block * in.C + c] = dbias;
}

template <class T>
void backward_plain(const Context& ctx, const ConvInput<T>& in, const Gradients<T>& out,
                    int64_t blocks) {
  const int halo = out.dhalo == nullptr ? 0 : in.K - 1;
  const int64_t elements = in.B * (in.tokens + halo) * in.C;
  launch(ctx, "causal_conv1d_backward",
         {.blocks = unsigned(ceil_div(elements, kPlainThreads)), .threads = kPlainThreads},
         dx_plain_kernel<T>, in, out, halo);
  RowBlocks row_blocks(in.B * in.tokens, blocks);
  row_blocks.count = blocks;  // some may be empty: all partial sums are written
  launch(ctx, "causal_conv1d_backward",
         {.blocks = {unsigned(ceil_div(in.C, kPlainThreads)), unsigned(blocks)},
          .threads = kPlainThreads},
         dweight_plain_kernel<T>, in, out, row_blocks);
}

}  // namespace

void causal_conv1d_backward(const Context& ctx, const CausalConv1dBackward& args,
                            const ConvPartials& partials) {
  if (args.x.numel() == 0) return;
  const int64_t blocks = partials.bias.dim(0);
  dispatch_float(args.x.dtype, [&]<class T>() {
    const ConvInput<T> in(args);
    const Gradients<T> out(args, partials);
    if (conv_in_windows<T, kWidth>(in, args.weight, args.x, args.halo, args.dy, args.dx,
                                   args.dhalo)) {
      const int64_t tiles = ceil_div(in.C, kWarp * kWidth);
      launch(ctx, "causal_conv1d_backward",
             {.blocks = unsigned(blocks * tiles), .threads = kBlockThreads}, backward_kernel<T>, in,
             out, tiles);
    } else {
      backward_plain(ctx, in, out, blocks);
    }
  });
  add_column_sums(ctx, "causal_conv1d_backward", pointer<float>(partials.weight), blocks,
                  args.dweight.numel(), pointer<float>(args.dweight));
  if (args.dbias) {
    add_column_sums(ctx, "causal_conv1d_backward", pointer<float>(partials.bias), blocks,
                    args.dbias.numel(), pointer<float>(args.dbias));
  }
}

}  // namespace sluice::cuda
