#include "tests/bench/cases.h"

#include "kernels/attention/attention_cudnn.h"
#include "kernels/core/dispatch.h"

namespace sluice::bench {
namespace {

// Shapes of the 130 M models at batch 1, which a laptop runs in a minute.
std::vector<Family> cpu_families(const Target& t) {
  constexpr int64_t kMamba2Projection = 2 * 1536 + 2 * 128 + 24;
  const auto ssd = [&](int64_t T, int64_t Q) { return ssd_case(t, {.T = T, .H = 24, .Q = Q}); };
  const auto conv = [&](int64_t T, int64_t C, int64_t projection) {
    return conv_case(t, {.T = T, .C = C, .projection = projection});
  };
  return {
      {"copy", {copy_ceiling(t)}},
      // The square one, then in_proj, x_proj and out_proj of mamba-130m.
      {"gemm",
       {linear_case(t, 2048, 2048, 2048), linear_case(t, 2048, 768, 3072),
        linear_case(t, 2048, 1536, 80), linear_case(t, 512, 1536, 768)}},
      {"norm", {norm_case(t, DType::f32, 2048, 768)}},
      {"gated_norm", {gated_norm_case(t, 2048, 1536, kMamba2Projection)}},
      {"activation",
       {activation_case(t, Activation::swiglu, 2048, 2048),
        activation_case(t, Activation::relu2, 2048, 3072),
        activation_case(t, Activation::gelu, 2048, 3072)}},
      // Mamba's channels, then Mamba-2's, which hold x, B and C.
      {"conv",
       {conv(512, 1536, 2 * 1536), conv(2048, 1536, 2 * 1536),
        conv(2048, 1536 + 2 * 128, kMamba2Projection)}},
      {"scan", {scan_case(t, {.T = 512, .E = 1536}), scan_case(t, {.T = 2048, .E = 1536})}},
      {"ssd", {ssd(512, 128), ssd(2048, 128), ssd(2048, 256)}},
      {"attention",
       {attention_case(t, {.T = 512, .Hq = 12, .Hkv = 4, .hd = 64}),
        attention_case(t, {.T = 2048, .Hq = 12, .Hkv = 4, .hd = 64})}},
      {"moe", {moe_case(t, {.T = 1024, .D = 768, .X = 8, .F = 2048})}},
      {"xent", {xent_case(t, 512, 768, 50288)}},
      {"adamw", {adamw_case(t, int64_t{1} << 24)}},
      {"accumulate", {accumulate_case(t, int64_t{1} << 24)}},
  };
}

// By our own kernels, and by cuDNN where it is found.
std::vector<Case> gpu_attention_cases(const Target& t) {
  std::vector<AttentionBackend> backends = {AttentionBackend::own};
  if constexpr (kBuiltWithCuda) {
    if (cuda::why_no_cudnn(t.device).empty()) backends.push_back(AttentionBackend::cudnn);
  }
  std::vector<Case> cases;
  for (const AttentionBackend backend : backends) {
    cases.push_back(
        attention_case(t, {.B = 4, .T = 4096, .Hq = 16, .Hkv = 16, .hd = 128, .backend = backend}));
    cases.push_back(
        attention_case(t, {.B = 2, .T = 8192, .Hq = 32, .Hkv = 8, .hd = 128, .backend = backend}));
  }
  return cases;
}

// The three products of a layer's projections.
std::vector<Case> gpu_gemm_cases(const Target& t) {
  std::vector<Case> cases = {gemm_ceiling(t)};
  struct Linear {
    int64_t T, in, out;
  };
  constexpr Linear kLinears[] = {
      {8192, 2048, 8512},  {8192, 4096, 2048},   // in_proj, out_proj of mamba2-1.3b
      {16384, 2048, 8512}, {16384, 4096, 2048},  // at the tokens of a step
      {16384, 768, 3352},  {16384, 1536, 768},   // of mamba2-130m
      {16384, 4096, 160},                        // x_proj of mamba-1.4b
  };
  for (const auto& [T, in, out] : kLinears) {
    for (const Product product :
         {Product::forward, Product::data_gradient, Product::weight_gradient}) {
      cases.push_back(product_case(t, product, T, in, out));
    }
  }
  return cases;
}

// Both chunk lengths: which is better depends on the shape.
std::vector<Case> gpu_ssd_cases(const Target& t) {
  std::vector<Case> cases;
  const SsdShape shapes[] = {{.B = 2, .T = 4096, .H = 64},
                             {.B = 4, .T = 4096, .H = 80},
                             {.B = 1, .T = 65536, .H = 64},
                             {.B = 4, .T = 4096, .H = 64, .G = 8},
                             {.B = 8, .T = 2048, .H = 24},
                             {.B = 1, .T = 2048, .H = 64}};  // where starting kernels takes long
  for (SsdShape shape : shapes) {
    for (const int64_t Q : {128, 256}) {
      shape.Q = Q;
      shape.recompute = true;
      cases.push_back(ssd_case(t, shape));
    }
  }
  return cases;
}

// Shapes at which public implementations were measured, of models between 130 M and 2.7 G.
std::vector<Family> gpu_families(const Target& t) {
  constexpr int64_t kTokens = 16384;
  std::vector<Case> norms = {norm_case(t, t.dtype, kTokens, 2048),
                             norm_case(t, t.dtype, kTokens, 4096)};
  if (t.dtype == DType::bf16) {
    norms.push_back(norm_case(t, DType::f32, kTokens, 2048));
    norms.push_back(norm_case(t, DType::f32, kTokens, 4096));
  }
  return {
      {"copy", {copy_ceiling(t)}},
      {"gemm", gpu_gemm_cases(t)},
      {"norm", norms},
      {"gated_norm",
       {gated_norm_case(t, kTokens, 2048, 2 * 2048 + 2 * 128 + 32),
        gated_norm_case(t, kTokens, 4096, 2 * 4096 + 2 * 128 + 64)}},
      {"activation",
       {activation_case(t, Activation::swiglu, kTokens, 4096),
        activation_case(t, Activation::relu2, kTokens, 4096),
        activation_case(t, Activation::gelu, kTokens, 4096)}},
      {"conv",
       {conv_case(t, {.B = 2, .T = 4096, .C = 4352, .projection = 8512}),
        conv_case(t, {.B = 4, .T = 4096, .C = 5376, .projection = 10576}),
        conv_case(t, {.B = 8, .T = 2048, .C = 4096, .projection = 8192})}},
      {"scan",
       {scan_case(t, {.B = 8, .T = 2048, .E = 4096}), scan_case(t, {.B = 4, .T = 8192, .E = 4096}),
        scan_case(t, {.B = 16, .T = 2048, .E = 1536})}},
      {"ssd", gpu_ssd_cases(t)},
      {"attention", gpu_attention_cases(t)},
      {"moe", {moe_case(t, {.T = kTokens, .D = 2048, .X = 16, .F = 4096})}},
      {"xent", {xent_case(t, kTokens, 2048, 50288)}},
      {"adamw", {adamw_case(t, int64_t{1} << 29)}},
      {"accumulate", {accumulate_case(t, int64_t{1} << 29)}},
      // A bucket of 100 MiB.
      {"tree_sum",
       {tree_sum_case(t, 2, (int64_t{100} << 18) / 2),
        tree_sum_case(t, 8, (int64_t{100} << 18) / 8),
        tree_sum_case(t, 16, (int64_t{100} << 18) / 16)}},
  };
}

}  // namespace

std::vector<Family> families(const Target& target) {
  return target.device.is_cuda() ? gpu_families(target) : cpu_families(target);
}

std::vector<StepCase> step_cases(const Target& target) {
  if (target.device.is_cpu()) {
    return {{"mamba-130m", 1, 512}, {"mamba2-130m", 1, 512}, {"hybrid-130m", 1, 512}};
  }
  return {{"mamba2-130m", 1, 2048},     {"mamba2-130m", 8, 2048},  {"mamba2-130m", 32, 2048},
          {"mamba2-370m", 8, 2048},     {"mamba2-370m", 16, 2048}, {"mamba2-1.3b", 4, 2048},
          {"mamba2-1.3b", 8, 2048},     {"mamba-130m", 8, 2048},   {"mamba-130m", 32, 2048},
          {"mamba-1.4b", 4, 2048},      {"mamba-1.4b", 8, 2048},   {"hybrid-130m", 8, 2048},
          {"hybrid-130m", 32, 2048},    {"jamba-mini", 8, 2048},   {"transformer-1.3b", 4, 2048},
          {"transformer-1.3b", 8, 2048}};
}

Case copy_ceiling(const Target& target) {
  return copy_case(target, target.device.is_cuda() ? int64_t{4} << 30 : int64_t{128} << 20);
}

Case gemm_ceiling(const Target& target) {
  if (!target.device.is_cuda()) return openblas_case(target, 2048);
  return product_case(target, Product::forward, 8192, 8192, 8192);
}

}  // namespace sluice::bench
