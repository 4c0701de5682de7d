// Shapes that miss a GPU's fast kernels, each after its nearest neighbour that does not: what
// `sluice plan` says about costs is from here (docs/gpu-runs.md). T tokens, D width of a row, k
// choices, R rotated columns
#include "kernels/core/host_copy.h"
#include "kernels/embedding/embedding.h"
#include "kernels/rope/rope.h"
#include "kernels/token_permute/token_permute.h"
#include "tests/bench/cases.h"

namespace sluice::bench {
namespace {

// Rows to experts and back: two choices a token, in the order of the tokens.
class Permute final : public Workload {
 public:
  Permute(const Target& target, int64_t T, int64_t D)
      : Workload(target),
        x_(uniform({1, T, D})),
        rows_(uniform({T * kChoices, D})),
        drows_(zeros(rows_.dims)),
        y_(zeros(x_.dims)),
        weights_(stat_uniform({1, T, kChoices})),
        dweights_(stat_zeros(weights_.dims)),
        slot_(zeros({1, T, kChoices}, DType::i32)) {
    const HostCopy slots(slot_, target.stream, HostCopy::Content::unread);
    for (int64_t entry = 0; entry < slot_.numel(); ++entry)
      slots.view().as<int32_t>()[entry] = int32_t(entry % kChoices * T + entry / kChoices);
    slots.write_back();
  }

  void forward(const Context& ctx) override {
    token_permute_forward(ctx, {.x = x_, .slot = slot_, .rows = drows_});
    token_unpermute_forward(ctx, {.rows = rows_, .slot = slot_, .weights = weights_, .y = y_});
  }
  void backward(const Context& ctx) override {
    token_unpermute_backward(ctx, {.dy = x_,
                                   .rows = rows_,
                                   .slot = slot_,
                                   .weights = weights_,
                                   .drows = drows_,
                                   .dweights = dweights_});
    token_permute_backward(ctx, {.drows = drows_, .slot = slot_, .dx = y_});
  }

 private:
  static constexpr int64_t kChoices = 2;
  TensorView x_, rows_, drows_, y_, weights_, dweights_, slot_;
};

class Rotation final : public Workload {
 public:
  Rotation(const Target& target, int64_t T, int64_t heads, int64_t head_dim)
      : Workload(target),
        x_(uniform({1, T, heads, head_dim})),
        positions_(zeros({1, T}, DType::i32)) {}

  void forward(const Context& ctx) override {
    rope_forward(ctx, {.x = x_, .positions = positions_, .rotary_dims = x_.dim(3)});
  }

 private:
  TensorView x_, positions_;
};

// Every token another row of the table.
class Embedding final : public Workload {
 public:
  Embedding(const Target& target, int64_t T, int64_t D)
      : Workload(target),
        tokens_(zeros({1, T}, DType::i32)),
        weight_(uniform({T, D})),
        y_(uniform({1, T, D})),
        dweight_(stat_zeros(weight_.dims)) {
    const HostCopy tokens(tokens_, target.stream, HostCopy::Content::unread);
    for (int64_t t = 0; t < T; ++t) tokens.view().as<int32_t>()[t] = int32_t(t);
    tokens.write_back();
  }

  void forward(const Context& ctx) override {
    embedding_forward(ctx, {.tokens = tokens_, .weight = weight_, .y = y_});
  }
  void backward(const Context& ctx) override {
    embedding_backward(ctx, {.tokens = tokens_, .dy = y_, .dweight = dweight_});
  }

 private:
  TensorView tokens_, weight_, y_, dweight_;
};

Case permute_case(const Target& target, int64_t T, int64_t D) {
  const double rows = target.width() * double(T) * double(D);
  return {.shape = {{"B", 1}, {"T", T}, {"k", 2}, {"D", D}},
          .forward = {.bytes = 6 * rows},
          .backward = {.bytes = 8 * rows},
          .make = [=] { return std::make_unique<Permute>(target, T, D); }};
}

Case rope_case(const Target& target, int64_t T, int64_t heads, int64_t head_dim) {
  const double elements = double(T) * double(heads) * double(head_dim);
  return {.shape = {{"B", 1}, {"T", T}, {"Hq", heads}, {"hd", head_dim}},
          .passes = Passes::forward,
          .forward = {.bytes = 2 * target.width() * elements},
          .make = [=] { return std::make_unique<Rotation>(target, T, heads, head_dim); }};
}

Case embedding_case(const Target& target, int64_t T, int64_t D) {
  const double elements = double(T) * double(D);
  return {.shape = {{"B", 1}, {"T", T}, {"D", D}},
          .forward = {.bytes = 2 * target.width() * elements},
          .backward = {.bytes = (target.width() + 2 * kFloat) * elements},
          .make = [=] { return std::make_unique<Embedding>(target, T, D); }};
}

std::vector<Case> ssd_cases(const Target& target) {
  std::vector<Case> cases;
  const SsdShape shapes[] = {
      {.H = 64, .Q = 128},  // P 64, N 128
      {.H = 64, .Q = 96},   // tensor cores, states first
      {.H = 64, .Q = 32},
      {.H = 64, .Q = 8},  // plain states
      {.H = 64, .N = 64, .Q = 256},
      {.H = 64, .N = 96, .Q = 256},  // plain from here on
      {.H = 32, .P = 128, .Q = 256},
      {.H = 64, .P = 48, .Q = 256},
      {.H = 64, .N = 16, .Q = 256},
      {.H = 64, .N = 256, .Q = 256},
      {.H = 64, .Q = 512},
  };
  for (SsdShape shape : shapes) {
    shape.B = 2;
    shape.T = 4096;
    shape.recompute = true;
    cases.push_back(ssd_case(target, shape));
  }
  return cases;
}

std::vector<Case> attention_cases(const Target& target) {
  std::vector<Case> cases;
  const AttentionShape shapes[] = {{.Hq = 16, .hd = 128},
                                   {.Hq = 16, .hd = 124},
                                   {.Hq = 8, .hd = 256},
                                   {.Hq = 16, .hd = 64},
                                   {.Hq = 16, .hd = 60}};
  for (AttentionShape shape : shapes) {
    shape.B = 4;
    shape.T = 2048;
    shape.Hkv = shape.Hq;
    cases.push_back(attention_case(target, shape));
  }
  return cases;
}

std::vector<Case> conv_cases(const Target& target) {
  std::vector<Case> cases;
  const auto add = [&](int64_t C, int64_t K) {
    cases.push_back(conv_case(
        target, {.B = 4, .T = 4096, .C = C, .K = K, .projection = 2 * C / 64 * 64 + 128}));
  };
  add(4352, 4), add(4352, 3), add(4352, 5), add(4354, 4);
  return cases;
}

}  // namespace

std::vector<Family> plain_families(const Target& t) {
  constexpr int64_t kTokens = 16384;
  std::vector<Case> products, norms, gated_norms, activations, scans;
  const auto add_products = [&](int64_t T, int64_t in, int64_t out, int64_t padding) {
    for (const Product product :
         {Product::forward, Product::data_gradient, Product::weight_gradient}) {
      products.push_back(product_case(t, product, T, in, out, padding));
    }
  };
  // Rows that are no multiple of 16 bytes; then whole ones of a number of columns that is none.
  for (const int64_t in : {2048, 2052, 2050, 2049}) add_products(kTokens, in, 8192, 0);
  for (const int64_t out : {8196, 8194, 8193}) add_products(kTokens, 2048, out, 8224 - out);
  add_products(kTokens - 1, 2048, 8192, 0);
  for (const int64_t D : {2048, 2052, 2050, 8192, 8200}) {
    norms.push_back(norm_case(t, t.dtype, kTokens, D));
    if (t.dtype == DType::bf16) norms.push_back(norm_case(t, DType::f32, kTokens, D));
  }
  for (const int64_t E : {4096, 4100, 8192, 8200})
    gated_norms.push_back(gated_norm_case(t, kTokens, E, 2 * E / 64 * 64 + 320));
  for (const int64_t F : {4096, 4100}) {
    for (const Activation kind : {Activation::swiglu, Activation::gelu, Activation::relu2})
      activations.push_back(activation_case(t, kind, kTokens, F));
  }
  for (const int64_t N : {16, 8, 12, 24, 32, 64, 128})
    scans.push_back(scan_case(t, {.B = 4, .T = 2048, .E = 4096, .N = N}));
  scans.push_back(scan_case(t, {.B = 4, .T = 2048, .E = 4100}));
  return {
      {"gemm", products},
      {"norm", norms},
      {"gated_norm", gated_norms},
      {"activation", activations},
      {"conv", conv_cases(t)},
      {"scan", scans},
      {"ssd", ssd_cases(t)},
      {"attention", attention_cases(t)},
      {"rope", {rope_case(t, kTokens, 16, 128), rope_case(t, kTokens, 16, 124)}},
      {"moe",
       {moe_case(t, {.T = kTokens, .D = 1024, .X = 16, .F = 2048}),
        moe_case(t, {.T = kTokens, .D = 1028, .X = 16, .F = 2048}),
        moe_case(t, {.T = kTokens, .D = 1024, .X = 16, .F = 2052})}},
      {"permute", {permute_case(t, kTokens, 2048), permute_case(t, kTokens, 2052)}},
      {"embedding", {embedding_case(t, kTokens, 2048), embedding_case(t, kTokens, 2052)}},
      {"xent",
       {xent_case(t, kTokens, 2048, 50288), xent_case(t, kTokens, 2052, 50288),
        xent_case(t, kTokens, 2049, 50288), xent_case(t, kTokens, 2048, 50289),
        xent_case(t, kTokens, 2048, 50290), xent_case(t, kTokens, 2048, 50292),
        xent_case(t, kTokens, 2048, 65536)}},
  };
}

}  // namespace sluice::bench
