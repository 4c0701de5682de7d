#include "kernels/gemm/gemm_cpu.h"

#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/gemm/blas.h"

namespace sluice::cpu {

namespace {

// The OpenMP flavour of OpenBLAS takes as many threads as the calling thread's next parallel region
// would, unless it is called inside one: openblas_set_num_threads alone does not hold it back.
class OneThread {
 public:
  OneThread() : threads_(omp_in_parallel() ? 1 : omp_get_max_threads()) {
    if (threads_ > 1) omp_set_num_threads(1);
  }
  ~OneThread() {
    if (threads_ > 1) omp_set_num_threads(threads_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int threads_;
};

blasint blas_int(int64_t value) {
  SLUICE_CHECK(value >= 0 && value <= std::numeric_limits<blasint>::max(),
               "OpenBLAS counts with 32 bits, got a size of ", value);
  return blasint(value);
}

CBLAS_TRANSPOSE blas_transpose(bool transpose) { return transpose ? CblasTrans : CblasNoTrans; }

void call_blas(CBLAS_TRANSPOSE op_a, CBLAS_TRANSPOSE op_b, blasint m, blasint n, blasint k,
               float alpha, const float* a, blasint lda, const float* b, blasint ldb, float beta,
               float* c, blasint ldc) {
  cblas_sgemm(CblasRowMajor, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void call_blas(CBLAS_TRANSPOSE op_a, CBLAS_TRANSPOSE op_b, blasint m, blasint n, blasint k,
               double alpha, const double* a, blasint lda, const double* b, blasint ldb,
               double beta, double* c, blasint ldc) {
  cblas_dgemm(CblasRowMajor, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// An empty inner dim: C = beta C.
template <class T>
void scale_tile(int64_t m, int64_t n, T beta, T* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == 0 ? T(0) : beta * c[i * ldc + j];
  }
}

template <class T>
void add_to_rows(const T* bias, int64_t m, int64_t n, T* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) c[i * ldc + j] += bias[j];
  }
}

template <class T>
void tile_product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
                  const T* a, int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) return scale_tile(m, n, beta, c, ldc);
  const OneThread one_thread;
  call_blas(blas_transpose(transpose_a), blas_transpose(transpose_b), blas_int(m), blas_int(n),
            blas_int(k), alpha, a, blas_int(lda), b, blas_int(ldb), beta, c, blas_int(ldc));
}

// One product as typed pointers, before it is cut into tiles.
template <class T>
struct Product {
  bool transpose_a = false;
  bool transpose_b = false;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  T alpha = 1;
  const T* a = nullptr;
  int64_t lda = 0;
  const T* b = nullptr;
  int64_t ldb = 0;
  T beta = 0;
  T* c = nullptr;
  int64_t ldc = 0;
  const T* bias = nullptr;
};

// Tiles of C. A tile costs m n k multiply-adds and packs (m + n) k elements of its own, so tiles
// nearly reach the speed of the whole product from kTileSideMin on a side; the shorter side of a
// narrow product is never cut.
constexpr int64_t kTilesWanted = 8;                     // of one product, to share out evenly
constexpr int64_t kTileAreaMax = int64_t{1} << 20;      // more tiles than that if they are larger
constexpr int64_t kTileSideMin = 256;                   // that a cut leaves
constexpr int64_t kTileProductsMin = int64_t{1} << 21;  // m n k: some 40 us, beside a pool's start
constexpr int64_t kTileAlign = 16;                      // of the cuts: the widest micro-kernel

// A function of the shape alone: halves the longer side until there are enough tiles. The count is
// a power of two, so the usual pools are evenly loaded.
struct TileGrid {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  int64_t tile_rows = 1;  // of the grid
  int64_t tile_columns = 1;

  TileGrid(int64_t m, int64_t n, int64_t k) : m(m), n(n), k(k) {
    while (should_cut()) (cuts_rows() ? tile_rows : tile_columns) *= 2;
  }
  int64_t count() const { return tile_rows * tile_columns; }
  static int64_t cut(int64_t size, int64_t tiles, int64_t tile) {
    const int64_t aligned = (size * tile / tiles + kTileAlign - 1) / kTileAlign * kTileAlign;
    return std::min(size, aligned);
  }

 private:
  bool cuts_rows() const { return m / tile_rows >= n / tile_columns; }
  bool should_cut() const {
    const int64_t rows = m / tile_rows, columns = n / tile_columns;
    if (count() >= kTilesWanted && rows * columns <= kTileAreaMax) return false;
    return std::max(rows, columns) >= 2 * kTileSideMin &&
           rows * columns * k >= 2 * kTileProductsMin;
  }
};

template <class T>
void run_tile(const Product<T>& p, int64_t tile) {
  const TileGrid grid(p.m, p.n, p.k);
  const int64_t i = tile / grid.tile_columns;
  const int64_t j = tile % grid.tile_columns;
  const int64_t row = TileGrid::cut(p.m, grid.tile_rows, i);
  const int64_t column = TileGrid::cut(p.n, grid.tile_columns, j);
  const int64_t rows = TileGrid::cut(p.m, grid.tile_rows, i + 1) - row;
  const int64_t columns = TileGrid::cut(p.n, grid.tile_columns, j + 1) - column;
  T* const c = p.c + row * p.ldc + column;
  tile_product(p.transpose_a, p.transpose_b, rows, columns, p.k, p.alpha,
               p.a + (p.transpose_a ? row : row * p.lda), p.lda,
               p.b + (p.transpose_b ? column * p.ldb : column), p.ldb, p.beta, c, p.ldc);
  if (p.bias) add_to_rows(p.bias + column, rows, columns, c, p.ldc);
}

// Before the parallel region, which nothing can be thrown out of.
template <class T>
void check_sizes(const Product<T>& p) {
  for (const int64_t size : {p.m, p.n, p.k, p.lda, p.ldb, p.ldc}) blas_int(size);
}

// All products' tiles in one pool. They are disjoint, so whoever takes them computes the same bits.
template <class T>
void run_products(const std::vector<Product<T>>& products) {
  std::vector<int64_t> first_tile(products.size() + 1, 0);
  for (size_t p = 0; p < products.size(); ++p) {
    check_sizes(products[p]);
    const Product<T>& product = products[p];
    first_tile[p + 1] = first_tile[p] + TileGrid(product.m, product.n, product.k).count();
  }
  const int64_t tiles = first_tile.back();
  if (tiles == 1) return run_tile(products[0], 0);
#pragma omp parallel for schedule(dynamic)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const auto after = std::upper_bound(first_tile.begin(), first_tile.end(), tile);
    const size_t p = after - first_tile.begin() - 1;
    run_tile(products[p], tile - first_tile[p]);
  }
}

}  // namespace

void tile_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
               const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
               int64_t ldc) {
  tile_product(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
void tile_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
               const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
               int64_t ldc) {
  tile_product(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

template <class T>
void gemm(const Gemm& args) {
  run_products<T>({{.transpose_a = args.transpose_a,
                    .transpose_b = args.transpose_b,
                    .m = args.c.dim(0),
                    .n = args.c.dim(1),
                    .k = args.a.dim(args.transpose_a ? 0 : 1),
                    .alpha = T(args.alpha),
                    .a = args.a.as<T>(),
                    .lda = args.a.row_stride,
                    .b = args.b.as<T>(),
                    .ldb = args.b.row_stride,
                    .beta = T(args.beta),
                    .c = args.c.as<T>(),
                    .ldc = args.c.row_stride,
                    .bias = args.bias ? args.bias.as<T>() : nullptr}});
}

template <class T>
void grouped_gemm(const GroupedGemm& args) {
  const int64_t* const offsets = args.offsets.as<int64_t>();
  std::vector<Product<T>> products;
  for (int64_t group = 0; group + 1 < args.offsets.numel(); ++group) {
    const ConstTensorView weight = args.weights.slice(group);
    products.push_back({.transpose_b = args.transpose_weights,
                        .m = offsets[group + 1] - offsets[group],
                        .n = args.c.dim(1),
                        .k = args.a.dim(1),
                        .a = args.a.row<T>(offsets[group]),
                        .lda = args.a.row_stride,
                        .b = weight.as<T>(),
                        .ldb = weight.row_stride,
                        .beta = T(args.beta),
                        .c = args.c.row<T>(offsets[group]),
                        .ldc = args.c.row_stride});
  }
  run_products(products);
}

template <class T>
void grouped_gemm_weight(const GroupedGemmWeight& args) {
  const int64_t* const offsets = args.offsets.as<int64_t>();
  std::vector<Product<T>> products;
  for (int64_t group = 0; group + 1 < args.offsets.numel(); ++group) {
    const TensorView weight = args.weights.slice(group);
    products.push_back({.transpose_a = true,
                        .m = args.a.dim(1),
                        .n = args.b.dim(1),
                        .k = offsets[group + 1] - offsets[group],
                        .a = args.a.row<T>(offsets[group]),
                        .lda = args.a.row_stride,
                        .b = args.b.row<T>(offsets[group]),
                        .ldb = args.b.row_stride,
                        .beta = T(args.beta),
                        .c = weight.as<T>(),
                        .ldc = weight.row_stride});
  }
  run_products(products);
}

template void gemm<float>(const Gemm&);
template void gemm<double>(const Gemm&);
template void grouped_gemm<float>(const GroupedGemm&);
template void grouped_gemm<double>(const GroupedGemm&);
template void grouped_gemm_weight<float>(const GroupedGemmWeight&);
template void grouped_gemm_weight<double>(const GroupedGemmWeight&);

}  // namespace sluice::cpu
