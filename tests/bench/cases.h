// Every case that can be timed, by operator (the functions), and which shapes and models a device
// times (the lists, in cases.cpp).
// B rows, T tokens of a row, D model, E inner, H heads, P head dim, G groups, N state dim, Q chunk
// length, K conv width, C channels, Hq query heads, Hkv key-value heads, hd head dim, F hidden
// width, X experts, k choices, V vocabulary
#pragma once

#include "kernels/activation/activation.h"
#include "kernels/attention/attention.h"
#include "tests/bench/workload.h"

namespace sluice::bench {

// Every operator that can be named on the command line, in the order of the output.
std::vector<Family> families(const Target& target);
// Of a GPU: shapes that miss the fast kernels, beside their neighbours.
std::vector<Family> plain_families(const Target& target);

// The ceilings, as cases of their own: a copy by all threads, or on the device; OpenBLAS with all
// threads, or the product of the operators.
Case copy_ceiling(const Target& target);
Case gemm_ceiling(const Target& target);

Case copy_case(const Target& target, int64_t bytes);

// A linear layer, T tokens: forward, and both gradients.
Case linear_case(const Target& target, int64_t T, int64_t in, int64_t out);
// One of its three products: y = x W^T, dx = dy W, dW += dy^T x in f32. padding: elements between
// rows of y.
enum class Product : uint8_t { forward, data_gradient, weight_gradient };
Case product_case(const Target& target, Product product, int64_t T, int64_t in, int64_t out,
                  int64_t padding = 0);
Case openblas_case(const Target& target, int64_t n);

Case norm_case(const Target& target, DType residual, int64_t T, int64_t D);
// z and dz are columns of a projection, `projection` wide.
Case gated_norm_case(const Target& target, int64_t T, int64_t E, int64_t projection);
Case activation_case(const Target& target, Activation kind, int64_t T, int64_t F);

struct ConvShape {
  int64_t B = 1, T = 0, C = 0, K = 4;
  int64_t projection = 0;  // width of that of which x and dx are columns
};
Case conv_case(const Target& target, const ConvShape& shape);

struct ScanShape {
  int64_t B = 1, T = 0, E = 0, N = 16;
};
Case scan_case(const Target& target, const ScanShape& shape);

struct SsdShape {
  int64_t B = 1, T = 0, H = 0, P = 64, G = 1, N = 128, Q = 0;
  bool recompute = false;  // the backward first computes the states again, as the layer does
};
Case ssd_case(const Target& target, const SsdShape& shape);

struct AttentionShape {
  int64_t B = 1, T = 0, Hq = 0, Hkv = 0, hd = 0;
  AttentionBackend backend = AttentionBackend::own;
};
Case attention_case(const Target& target, const AttentionShape& shape);

struct MoeShape {
  int64_t T = 0, D = 0, X = 0, k = 2, F = 0;
};
Case moe_case(const Target& target, const MoeShape& shape);

Case xent_case(const Target& target, int64_t T, int64_t D, int64_t V);
Case adamw_case(const Target& target, int64_t n);
Case accumulate_case(const Target& target, int64_t n);
Case tree_sum_case(const Target& target, int64_t ranks, int64_t n);

struct StepCase {
  std::string config;  // <configs>/<config>.yaml
  int64_t B = 1;       // rows
  int64_t T = 512;     // tokens of a row
};
// On the CPU those that fit a laptop, on a GPU those that public implementations were measured at.
std::vector<StepCase> step_cases(const Target& target);

}  // namespace sluice::bench
