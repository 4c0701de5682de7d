// B batch, T tokens, C channels, K taps
#include "kernels/causal_conv1d/causal_conv1d_cuda.cuh"
#include "kernels/core/row_blocks.h"

namespace sluice::cuda {

namespace {

constexpr int kBlockThreads = kConvWarps * kWarp;
constexpr int kPlainThreads = 128;
constexpr int kLookahead = kConvTaps - 1;  // dx of a token is complete so many tokens later

template <class T>
struct Gradients {
  const T* dy;
  T* dx;
  T* dhalo;  // null: not asked for
  float* partial;
  int64_t dy_stride, dx_stride, dhalo_stride;

  Gradients(const CausalConv1dBackward& args, const TensorView& partial)
      : dy(pointer<T>(args.dy)),
        dx(pointer<T>(args.dx)),
        dhalo(optional_pointer<T>(args.dhalo)),
        partial(pointer<float>(partial)),
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
  ConvWindow window;
  float dweight[kConvTaps][kConvWidth] = {};
  float dbias[kConvWidth] = {};
  ConvRow pending[kLookahead] = {};  // dx of the token 1, 2, 3 before

  // One token. Edge: its document may have begun `age` < kLookahead tokens ago, and its parameter
  // gradients count only if it is its warp's own. Returns dx of the token 3 before.
  template <bool kEdge>
  __device__ ConvRow advance(const ConvRow& x, const ConvRow& dy, int age, bool own) {
    if (kEdge && age == 0) window.forget();
    ConvRow done, latest;
#pragma unroll
    for (int i = 0; i < kConvWidth; ++i) {
      const float dv = through_silu(dy.values[i], window.pre_activation(i, x.values[i]));
      const float counted = kEdge && !own ? 0.0f : dv;
      dbias[i] += counted;
      dweight[0][i] = fmaf(counted, x.values[i], dweight[0][i]);
      latest.values[i] = window.weight[0][i] * dv;
#pragma unroll
      for (int j = 1; j < kConvTaps; ++j) {
        dweight[j][i] = fmaf(counted, window.before[j - 1].values[i], dweight[j][i]);
        float& sum = pending[j - 1].values[i];
        if (!kEdge || age >= j) sum = fmaf(window.weight[j][i], dv, sum);
      }
      done.values[i] = pending[kLookahead - 1].values[i];
    }
#pragma unroll
    for (int j = kLookahead - 1; j > 0; --j) pending[j] = pending[j - 1];
    pending[0] = latest;
    window.push(x);
    return done;
  }
};

// The parameter gradients of a block's warps, added up in order.
__device__ void store_partials(const BackwardWalk& walk, int64_t tile_begin, int64_t C,
                               float* partial, char* shared) {
  constexpr int kSums = kConvTaps + 1;
  using Sums = float[kSums][kConvChannels];
  Sums* const sums = reinterpret_cast<Sums*>(shared);  // of the warps
  const int warp = threadIdx.x / kWarp, first = threadIdx.x % kWarp * kConvWidth;
#pragma unroll
  for (int i = 0; i < kConvWidth; ++i) {
#pragma unroll
    for (int j = 0; j < kConvTaps; ++j)
      sums[warp][kConvTaps - 1 - j][first + i] = walk.dweight[j][i];
    sums[warp][kConvTaps][first + i] = walk.dbias[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSums * kConvChannels; i += kBlockThreads) {
    const int k = i / kConvChannels, channel = i % kConvChannels;
    const int64_t c = tile_begin + channel;
    if (c >= C) continue;
    float sum = 0;
#pragma unroll
    for (int other = 0; other < kConvWarps; ++other) sum += sums[other][k][channel];
    partial[k < kConvTaps ? c * kConvTaps + k : C * kConvTaps + c] = sum;
  }
}

template <class T>
using BackwardQueue = ConvQueue<T, 2>;  // of x and dy

// A group of tokens. Edge: they may be behind the warp's own or the row's last, or young, or the
// first ones, whose dx belongs to another warp or to the halo. `dx` is of the row kLookahead
// before.
template <bool kEdge, class T>
__device__ void backward_rows(BackwardWalk& walk, const ConvInput<T>& in, const Gradients<T>& out,
                              const ConvPiece& piece, const BackwardQueue<T>& queue, T* dx,
                              const ConvAges& ages, int begin) {
#pragma unroll
  for (int i = 0; i < kConvAhead; ++i) {
    const int row = begin + i;
    const int age = kEdge ? ages.of(row) : kConvTaps;
    const ConvRow done =
        walk.advance<kEdge>(queue.row(0, i), queue.row(1, i), age, row < piece.count);
    T* to = dx + i * out.dx_stride;
    if (kEdge && row < kLookahead) {
      if (piece.begin > 0 || out.dhalo == nullptr) continue;
      to = out.dx_row(piece.b, row - kLookahead, in.tokens, kConvTaps) + piece.c;
    }
    if (piece.active && (!kEdge || row < piece.count + kLookahead)) store_row(to, done);
  }
}

// Memory-bound: 6 T C bytes in bf16. A lane walks down its channels; a warp reads x of 3 rows
// before its own, and x and dy of 3 rows after.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, kConvBackwardResident)
    backward_kernel(ConvInput<T> in, Gradients<T> out, int64_t rows) {
  extern __shared__ __align__(16) char shared[];
  const int64_t tiles = conv_tiles(in.C);
  const int warp = threadIdx.x / kWarp;
  const ConvPiece piece(in.B, in.tokens, in.C, rows, blockIdx.x / tiles * kConvWarps + warp,
                        blockIdx.x % tiles);
  const bool empty = piece.count == 0;
  const int64_t b = empty ? 0 : piece.b, begin_token = empty ? 0 : piece.begin;
  const int walked = empty ? 0 : piece.count + kLookahead;
  const int64_t first_row = b * in.tokens + begin_token;
  const int present = int(min(int64_t{walked}, in.tokens - begin_token));  // rows with tokens
  BackwardQueue<T> queue(reinterpret_cast<typename BackwardQueue<T>::Shared*>(shared)[warp],
                         {{in.x + first_row * in.x_stride + piece.c, in.x_stride},
                          {out.dy + first_row * out.dy_stride + piece.c, out.dy_stride}},
                         present);
  T* dx = out.dx + (first_row - kLookahead) * out.dx_stride + piece.c;
  BackwardWalk walk{.window = {in, b, begin_token, piece.c}};
  ConvAges ages;
  for (int begin = 0; begin < walked; begin += kConvAhead) {
    if (begin % kWarp == 0) ages.load(in, b, begin_token + begin, begin_token + present);
    queue.next();
    if (begin >= kLookahead && begin + kConvAhead <= piece.count && ages.old<kConvAhead>(begin)) {
      backward_rows<false>(walk, in, out, piece, queue, dx, ages, begin);
    } else {
      backward_rows<true>(walk, in, out, piece, queue, dx, ages, begin);
    }
    dx += kConvAhead * out.dx_stride;
  }
  wait_copies<0>();
  __syncthreads();
  const int64_t block = blockIdx.x / tiles;
  store_partials(walk, piece.tile_begin, in.C, out.partial + block * in.C * (kConvTaps + 1),
                 shared);
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
  float* const partial = out.partial + block * in.C * (in.K + 1);
  float* const dweight = partial + c * in.K;
  for (int k = 0; k < in.K; ++k) dweight[k] = 0;
  float dbias = 0;
  for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
    const int64_t b = row / in.tokens, t = row % in.tokens, age = in.age(b, t);
    const float dv = gradient_of_v(in, out, b, t, c);
    for (int j = 0; j < in.K; ++j) dweight[in.K - 1 - j] += dv * in.tap(b, t, age, j, c);
    dbias += dv;
  }
  partial[in.C * in.K + c] = dbias;
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

// A block adds up kWarp columns of the partial sums: its warps take turns with the rows. Latency is
// all it costs, so that its loads start at once and all blocks find room at the same time.
constexpr int kAddWarps = 8;

__global__ void __launch_bounds__(kAddWarps* kWarp)
    add_partials_kernel(const float* partial, int64_t rows, int64_t weights, int64_t columns,
                        float* dweight, float* dbias) {
  __shared__ float of_warp[kAddWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t column = blockIdx.x * int64_t(kWarp) + lane;
  float* const total = column < weights                       ? dweight + column
                       : column < columns && dbias != nullptr ? dbias + (column - weights)
                                                              : nullptr;
  const float before = warp == 0 && total != nullptr ? *total : 0.0f;
  float sum = 0;
  if (total != nullptr) {
#pragma unroll 8
    for (int64_t row = warp; row < rows; row += kAddWarps) sum += partial[row * columns + column];
  }
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || total == nullptr) return;
  sum = 0;
#pragma unroll
  for (int other = 0; other < kAddWarps; ++other) sum += of_warp[other][lane];
  *total = before + sum;
}

}  // namespace

void causal_conv1d_backward(const Context& ctx, const CausalConv1dBackward& args,
                            const TensorView& partial) {
  if (args.x.numel() == 0) return;
  const int64_t blocks = partial.dim(0), columns = partial.dim(1);
  dispatch_float(args.x.dtype, [&]<class T>() {
    const ConvInput<T> in(args);
    const Gradients<T> out(args, partial);
    if (conv_in_windows(in, args.weight, args.x, args.halo, args.dy, args.dx, args.dhalo)) {
      launch(ctx, "causal_conv1d_backward",
             {.blocks = unsigned(blocks * conv_tiles(in.C)),
              .threads = kBlockThreads,
              .shared_bytes = kConvWarps * sizeof(typename BackwardQueue<T>::Shared)},
             backward_kernel<T>, in, out, conv_backward_rows(in.B, in.tokens, in.C));
    } else {
      backward_plain(ctx, in, out, blocks);
    }
  });
  launch(ctx, "causal_conv1d_backward",
         {.blocks = unsigned(ceil_div(columns, kWarp)), .threads = kAddWarps * kWarp},
         add_partials_kernel, pointer<float>(partial), blocks, args.dweight.numel(), columns,
         pointer<float>(args.dweight), optional_pointer<float>(args.dbias));
}

}  // namespace sluice::cuda
