// Embedding on the GPU. Forward copies rows: n * D elements read and written.
//
// Backward sorts the tokens by id, then sums runs of equal ids; n * D elements of dy are read, and
// every row of dweight that has a token is read and written once. A block sums a piece of the
// sorted tokens, whatever runs it holds, so one frequent token is shared by many blocks: a run that
// a piece shares with its neighbours goes to scratch, and a last kernel adds those sums in order.
//
// n tokens, D model, V vocabulary
#include "kernels/core/packs.h"
#include "kernels/device/dispatch.cuh"
#include "kernels/device/elements.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/embedding/embedding_cuda.h"
#include "kernels/embedding/token_sort.cuh"

namespace sluice::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBatch = 8;  // rows of dy that a thread has in flight
constexpr int kJoinThreads = 128;

template <class W, class Y>
struct ForwardRows {
  const W* weight;
  Y* y;
  int64_t weight_stride, y_stride;
  TokenRows tokens;
  int D;
};

// A block copies the row of one token.
template <class W, class Y, int kWidth>
__global__ void __launch_bounds__(kThreads) embedding_forward_kernel(ForwardRows<W, Y> a) {
  const int32_t id = a.tokens(blockIdx.x);
  const bool known = id < a.tokens.V;
  for (int column = threadIdx.x * kWidth; column < a.D; column += int(blockDim.x) * kWidth) {
    Elements<W, kWidth> row = {};
    if (known) row = Elements<W, kWidth>::load(a.weight + id * a.weight_stride + column);
    Elements<Y, kWidth> y;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) y.set(i, known ? row[i] : __int_as_float(0x7fc00000));  // NaN
    y.store(a.y + blockIdx.x * a.y_stride + column);
  }
}

template <class T>
struct BackwardRows {
  const T* dy;
  float* dweight;
  float* edges;  // (pieces, 2, D)
  int64_t dy_stride, dweight_stride;
  SortedTokens tokens;
  int32_t V;
  int D;

  // The sum of the run that piece shares with the piece before it, or of the one that begins in it
  // and goes on in the next.
  __device__ float* from_before(int64_t piece) const { return edges + 2 * piece * D; }
  __device__ float* into_next(int64_t piece) const { return edges + (2 * piece + 1) * D; }
};

// A run of equal ids that ends with entry `last` of the piece goes to where its sum belongs.
template <class T, int kWidth>
__device__ void put_run(const BackwardRows<T>& a, int32_t id, bool from_before, bool into_next,
                        int column, const Elements<float, kWidth>& sum) {
  if (from_before || into_next) {
    float* const edge = from_before ? a.from_before(blockIdx.x) : a.into_next(blockIdx.x);
    sum.store(edge + column);
    return;
  }
  float* const dweight = a.dweight + id * a.dweight_stride + column;
  auto total = Elements<float, kWidth>::load(dweight);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) total.values[i] += sum[i];
  total.store(dweight);
}

// Block (x, y) sums piece x of the sorted tokens over kWidth columns a thread.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) sum_pieces_kernel(BackwardRows<T> a) {
  // With the neighbours of the piece: entry i is at ids[i + 1]. None is -1.
  __shared__ int32_t ids[kPieceTokens + 2], positions[kPieceTokens];
  const int64_t first = blockIdx.x * kPieceTokens;
  const int64_t left = a.tokens.n - first;
  const int count = int(left < kPieceTokens ? left : kPieceTokens);
  if (threadIdx.x < kPieceTokens + 2) {
    const int64_t entry = first + threadIdx.x - 1;
    const bool inside = entry >= 0 && entry < a.tokens.n;
    ids[threadIdx.x] = inside ? a.tokens.ids[entry] : -1;
  }
  if (threadIdx.x < count) positions[threadIdx.x] = a.tokens.positions[first + threadIdx.x];
  __syncthreads();
  const int column = int(blockIdx.y * blockDim.x + threadIdx.x) * kWidth;
  if (column >= a.D) return;
  bool from_before = ids[0] == ids[1];
  Elements<float, kWidth> sum = {};
  for (int batch = 0; batch < count; batch += kBatch) {
    Elements<T, kWidth> rows[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int entry = std::min(batch + i, count - 1);
      rows[i] = Elements<T, kWidth>::load(a.dy + positions[entry] * a.dy_stride + column);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int entry = batch + i;
      if (entry >= count) break;
      const int32_t id = ids[entry + 1];
      if (id == a.V) return;  // tokens outside the vocabulary are last
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum.values[j] += rows[i][j];
      const bool goes_on = ids[entry + 2] == id;
      if (goes_on && entry + 1 < count) continue;
      put_run<T, kWidth>(a, id, from_before, goes_on, column, sum);
      from_before = false;
      sum = {};
    }
  }
}

// Block (x, y) adds up the run that begins in piece x and goes on, if there is one.
template <class T>
__global__ void __launch_bounds__(kJoinThreads) join_pieces_kernel(BackwardRows<T> a) {
  const int64_t first = blockIdx.x * kPieceTokens, next = first + kPieceTokens;
  if (next >= a.tokens.n) return;
  const int32_t* const ids = a.tokens.ids;
  const int32_t id = ids[next];
  if (ids[next - 1] != id || id == a.V) return;
  if (first > 0 && ids[first - 1] == id) return;  // it began earlier
  int64_t inside = next, outside = a.tokens.n;    // the run ends between
  while (outside - inside > 1) {
    const int64_t middle = (inside + outside) / 2;
    (ids[middle] == id ? inside : outside) = middle;
  }
  const int column = int(blockIdx.y) * kJoinThreads + int(threadIdx.x);
  if (column >= a.D) return;
  const int64_t last_piece = inside / kPieceTokens;
  float sum = a.into_next(blockIdx.x)[column];
#pragma unroll 8
  for (int64_t piece = blockIdx.x + 1; piece <= last_piece; ++piece)
    sum += a.from_before(piece)[column];
  a.dweight[id * a.dweight_stride + column] += sum;
}

TokenRows rows_of(const ConstTensorView& tokens, int64_t V) {
  return {.first = tokens.as<int32_t>(),
          .stride = tokens.row_stride,
          .length = tokens.row_size(),
          .V = int32_t(V)};
}

// Whether packs of `narrow` elements, of which `rows` may have wider ones, are whole there.
bool in_packs_of(DType narrow, const ConstTensorView& rows) {
  return at_pack(rows.data) && whole_packs({rows.row_size(), rows.row_stride}, narrow);
}

// body<kWidth>(): as many neighbours as 16 bytes of T hold, or one where rows do not allow it.
template <class T, class Body>
void dispatch_width(DType narrow, const ConstTensorView& a, const ConstTensorView& b, Body&& body) {
  if (in_packs_of(narrow, a) && in_packs_of(narrow, b))
    return body.template operator()<Pack<T>::kWidth>();
  body.template operator()<1>();
}

unsigned threads_of(int64_t D, int width) {
  return unsigned(std::min<int64_t>(kThreads, ceil_div(D, int64_t{kWarp} * width) * kWarp));
}

template <class W, class Y>
void forward(const Context& ctx, const EmbeddingForward& args) {
  const ForwardRows<W, Y> rows = {.weight = pointer<W>(args.weight),
                                  .y = pointer<Y>(args.y),
                                  .weight_stride = args.weight.row_stride,
                                  .y_stride = args.y.row_stride,
                                  .tokens = rows_of(args.tokens, args.weight.rows()),
                                  .D = int(args.y.row_size())};
  dispatch_width<W>(args.weight.dtype, args.weight, args.y, [&]<int kWidth>() {
    launch(ctx, "embedding_forward",
           {.blocks = unsigned(args.tokens.numel()), .threads = threads_of(rows.D, kWidth)},
           embedding_forward_kernel<W, Y, kWidth>, rows);
  });
}

}  // namespace

void embedding_forward(const Context& ctx, const EmbeddingForward& args) {
  if (args.weight.dtype != args.y.dtype) return forward<Bf16, float>(ctx, args);
  dispatch_float(args.y.dtype, [&]<class T>() { forward<T, T>(ctx, args); });
}

void embedding_backward(const Context& ctx, const EmbeddingBackward& args,
                        const EmbeddingWork& work) {
  const int64_t n = args.tokens.numel(), D = args.dy.row_size(), V = args.dweight.rows();
  if (n == 0) return;
  const SortedTokens tokens = sort_tokens(ctx, rows_of(args.tokens, V), n, work);
  const unsigned pieces = unsigned(ceil_div(n, kPieceTokens));
  dispatch_float(args.dy.dtype, [&]<class T>() {
    const BackwardRows<T> rows = {.dy = pointer<T>(args.dy),
                                  .dweight = args.dweight.as<float>(),
                                  .edges = work.edges.as<float>(),
                                  .dy_stride = args.dy.row_stride,
                                  .dweight_stride = args.dweight.row_stride,
                                  .tokens = tokens,
                                  .V = int32_t(V),
                                  .D = int(D)};
    dispatch_width<T>(args.dy.dtype, args.dy, args.dweight, [&]<int kWidth>() {
      const unsigned threads = std::max(2u * kWarp, threads_of(D, kWidth));
      launch(ctx, "embedding_backward",
             {.blocks = {pieces, unsigned(ceil_div(D, int64_t{threads} * kWidth))},
              .threads = threads},
             sum_pieces_kernel<T, kWidth>, rows);
    });
    launch(ctx, "embedding_backward",
           {.blocks = {pieces, unsigned(ceil_div(D, kJoinThreads))}, .threads = kJoinThreads},
           join_pieces_kernel<T>, rows);
  });
}

}  // namespace sluice::cuda
