#include "kernels/device/launch.cuh"
#include "kernels/topk_router/router_report_cuda.h"

namespace sluice::cuda {

namespace {

constexpr int kThreads = 256;

// One block: B * X numbers are few. Thread e takes the experts e, e + kThreads, ... of every row;
// their sums are added in the order of the threads.
__global__ void router_report_kernel(int64_t B, int64_t X, const float* counts_here,
                                     const float* counts, const float* mass, const float* z,
                                     double balance_factor, double z_factor, double* losses,
                                     double* loads) {
  __shared__ double balances[kThreads];
  double balance = 0;
  for (int64_t e = threadIdx.x; e < X; e += kThreads) {
    double load = 0;
    for (int64_t b = 0; b < B; ++b) {
      load += counts_here[b * X + e];
      balance += double(counts[b * X + e]) * double(mass[b * X + e]);
    }
    if (loads != nullptr) loads[e] += load;
  }
  balances[threadIdx.x] = balance;
  __syncthreads();
  if (threadIdx.x > 0) return;
  double sum = 0, squares = 0;
  for (int i = 0; i < kThreads; ++i) sum += balances[i];
  for (int64_t b = 0; b < B; ++b) squares += z[b];
  losses[0] += balance_factor * sum;
  losses[1] += z_factor * squares;
}

}  // namespace

void router_report(const Context& ctx, const RouterReport& args) {
  const int64_t B = args.counts.dim(0), X = args.counts.dim(1);
  const double tokens = double(args.row_tokens);
  const double balance_factor =
      args.balance_scale * double(X) / (tokens * tokens * double(args.top_k));
  launch(ctx, "router_report", {.blocks = 1, .threads = kThreads}, router_report_kernel, B, X,
         args.counts_here.as<float>(), args.counts.as<float>(), args.mass.as<float>(),
         args.z.as<float>(), balance_factor, args.z_scale / tokens, args.losses.as<double>(),
         args.loads ? args.loads.as<double>() : nullptr);
}

}  // namespace sluice::cuda
