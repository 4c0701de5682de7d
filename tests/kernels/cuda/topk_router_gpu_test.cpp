#include "kernels/topk_router/topk_router.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

// Everything of a router is f32 whatever the activations are.
constexpr GpuBounds kBounds{.f32 = 1e-5, .bf16 = 1e-5, .arena_bytes = size_t{4} << 20};

struct Case {
  int64_t B, T, X;
  RouterOptions options;
  bool bias;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B" << c.B << " T" << c.T << " X" << c.X << " k" << c.options.top_k << " groups "
             << c.options.num_groups << (c.bias ? " bias" : "");
}
std::vector<Case> all_cases() {
  const RouterScore softmax = RouterScore::softmax, sigmoid = RouterScore::sigmoid;
  return {{2, 37, 16, {.score = softmax, .top_k = 2}, false},
          {1, 19, 5, {.score = softmax, .top_k = 5, .renormalise = true, .scale = 1.5}, true},
          // Renormalised, the weight of one choice is 1, and its gradient nothing but rounding.
          {3, 1, 1, {.score = sigmoid, .top_k = 1}, false},
          {2, 11, 70, {.score = sigmoid, .top_k = 40, .renormalise = true, .scale = 2.5}, true},
          {1, 300, 64, {.score = sigmoid, .top_k = 6, .num_groups = 8, .topk_group = 3}, true},
          {1, 9, 12, {.score = softmax, .top_k = 2, .num_groups = 12, .topk_group = 4}, false},
          {1,
           21,
           256,
           {.score = sigmoid, .top_k = 8, .renormalise = true, .num_groups = 8, .topk_group = 4},
           true},
          {1, 3, 3000, {.score = softmax, .top_k = 3}, false}};
}

class TopkRouterGpu : public testing::TestWithParam<Case> {};

TEST_P(TopkRouterGpu, ForwardAndBackwardAgreeWithCpu) {
  check_on_gpu(
      [](Side& side) {
        const Case& c = GetParam();
        const Dims choices{c.B, c.T, c.options.top_k};
        const TensorView logits = side.stat_normal({c.B, c.T, c.X});
        const TensorView experts = side.output("experts", choices, DType::i32);
        topk_router_forward(side.ctx(),
                            {.logits = logits,
                             .bias = c.bias ? side.stat_normal({c.X}, 0.1) : TensorView{},
                             .experts = experts,
                             .weights = side.output("weights", choices, side.stat()),
                             .options = c.options});
        topk_router_backward(side.ctx(),
                             {.dweights = side.stat_normal(choices),
                              .logits = logits,
                              .experts = experts,
                              .dlogits = side.output("dlogits", logits.dims, side.stat()),
                              .options = c.options});
      },
      kBounds);
}

TEST_P(TopkRouterGpu, StatisticsAndLossesAgreeWithCpu) {
  check_on_gpu(
      [](Side& side) {
        const Case& c = GetParam();
        const TensorView logits = side.stat_normal({c.B, c.T, c.X});
        std::vector<double> chosen(c.B * c.T * c.options.top_k);
        for (size_t i = 0; i < chosen.size(); ++i) chosen[i] = double(i * i % size_t(c.X));
        const TensorView counts = side.output("counts", {c.B, c.X}, side.stat());
        router_statistics(side.ctx(),
                          {.logits = logits,
                           .experts = side.values({c.B, c.T, c.options.top_k}, DType::i32, chosen),
                           .counts = counts,
                           .mass = side.output("mass", {c.B, c.X}, side.stat()),
                           .z = side.output("z", {c.B}, side.stat()),
                           .options = c.options});
        router_loss_backward(
            side.ctx(), {.logits = logits,
                         .counts = counts,
                         .dlogits = side.compare("dlogits", side.stat_normal(logits.dims, 1e-3)),
                         .row_tokens = c.T + 3,
                         .balance_scale = 0.3,
                         .z_scale = 0.2,
                         .options = c.options});
      },
      kBounds);
}

INSTANTIATE_TEST_SUITE_P(Cases, TopkRouterGpu, testing::ValuesIn(all_cases()));

// Of equal experts and groups the lower index is chosen.
TEST(TopkRouterGpuEdges, BreaksTiesAsTheCpuDoes) {
  check_on_gpu([](Side& side) {
    const int64_t X = 96, tokens = 8;
    std::vector<double> logits(X * tokens);
    for (int64_t i = 0; i < X * tokens; ++i)
      logits[i] = double(i * 7 % 5) * 0.5 * double(i / X % 3);
    const TensorView view = side.values({1, tokens, X}, side.stat(), logits);
    for (const int64_t groups : {1, 8, 96}) {
      topk_router_forward(
          side.ctx(),
          {.logits = view,
           .experts = side.output(concat("experts ", groups), {1, tokens, 7}, DType::i32),
           .weights = side.output(concat("weights ", groups), {1, tokens, 7}, side.stat()),
           .options = {.top_k = 7, .num_groups = groups, .topk_group = groups == 8 ? 2 : groups}});
    }
  });
}

TEST(TopkRouterGpuEdges, TakesAGivenChoice) {
  check_on_gpu([](Side& side) {
    const TensorView experts = side.values({1, 3, 2}, DType::i32, {4, 0, 1, 2, 3, 4});
    topk_router_forward(side.ctx(), {.logits = side.stat_normal({1, 3, 5}),
                                     .experts = side.compare("experts", experts),
                                     .weights = side.output("weights", {1, 3, 2}, side.stat()),
                                     .options = {.top_k = 2, .renormalise = true},
                                     .chosen = true});
  });
}

// NaN goes on to the weights, and some expert is chosen.
TEST(TopkRouterGpuEdges, SurvivesNaN) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  Side side({Device::Kind::cuda, 0}, DType::f32, DType::f32, 1, size_t{1} << 20);
  const TensorView experts = side.values({1, 3, 2}, DType::i32, {9, 9, 9, 9, 9, 9});
  const TensorView weights = side.nothing({1, 3, 2}, DType::f32);
  topk_router_forward(side.ctx(), {.logits = side.nothing({1, 3, 40}, DType::f32),
                                   .experts = experts,
                                   .weights = weights,
                                   .options = {.top_k = 2}});
  for (const double expert : side.download(experts)) EXPECT_TRUE(expert >= 0 && expert < 40);
  for (const double weight : side.download(weights)) EXPECT_TRUE(std::isnan(weight));
}

}  // namespace
}  // namespace sluice::test
