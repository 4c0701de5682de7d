#include "layers/model.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/layer_check.h"

namespace sluice::test {
namespace {

ModelConfig tiny(const std::string& pattern) {
  ModelConfig config;
  config.d_model = 8;
  config.vocab_size = 11;
  config.stack.pattern = pattern;
  std::get<Mamba2Config>(config.sections) = {.head_dim = 4, .state_dim = 3, .chunk = 4};
  std::get<MambaConfig>(config.sections) = {.state_dim = 3, .dt_rank = 2};
  std::get<AttentionConfig>(config.sections).heads = 2;
  std::get<MlpConfig>(config.sections).hidden = 6;
  MoeConfig& moe = std::get<MoeConfig>(config.sections);
  moe.experts = 4;
  moe.hidden = 5;
  return config;
}

// A model with parameters, tokens and targets of its own.
struct Harness {
  Harness(const ModelConfig& config, DType dtype, Recompute recompute = Recompute::none)
      : ctx(size_t{32} << 20),
        store(dtype),
        model(config, store, {.recompute = recompute}),
        rows(2, 13, {{4}, {1, 12}}),
        tokens({2, 13}, DType::i32),
        targets({2, 13}, DType::i32) {
    store.freeze();
    store.initialise(3);
    // Away from the symmetric start, where a norm's gradient could hide in a rounding error.
    dispatch_float(dtype, [&]<class T>() {
      for (int64_t i = 0; i < store.flat_size(); ++i) {
        store.values().as<T>()[i] += T(0.1 * random_normal({.seed = 5}, i));
      }
    });
    scale.fill(0.25);
    gradients = Tensor({store.flat_size()}, dtype);
    gradients.fill(0);
    store.bind_gradients(gradients);
    tokens.fill_below(1, config.vocab_size);
    targets.fill_below(2, config.vocab_size);
    targets.set(3, -1);
    targets.set(20, -1);
  }
  ModelInput input() const { return {.tokens = tokens, .targets = targets, .rows = rows}; }
  double train(StepStatistics* statistics = nullptr) {
    const StatisticsBuffer sums(model.expert_branches());
    model.train(ctx, input(), {.loss_scale = scale, .loss = loss, .statistics = &sums.sink()});
    if (statistics != nullptr) *statistics = sums.read(ctx);
    return loss.get(0);
  }
  double evaluate() {
    model.evaluate(ctx, input(), loss);
    return loss.get(0);
  }
  TestContext ctx;
  ParameterStore store;
  Model model;
  TestRows rows;
  Tensor tokens, targets, gradients;
  Tensor loss{{1}, DType::f64}, scale{{1}, DType::f64};
};

class ModelPatterns : public testing::TestWithParam<const char*> {};

TEST_P(ModelPatterns, GradientsMatchCentralDifferences) {
  for (const bool tied : {true, false}) {
    SCOPED_TRACE(tied);
    ModelConfig config = tiny(GetParam());
    config.tie_embeddings = tied;
    Harness h(config, DType::f64);
    h.train();
    const Tensor analytic = h.gradients.clone();
    const TensorView values = h.store.values();
    const auto loss = [&] {
      StepStatistics statistics;
      const double sum = h.train(&statistics);
      return 0.25 * sum + statistics.auxiliary_loss();
    };
    double difference = 0, norm = 0;
    for (const Parameter& parameter : h.store.parameters()) {
      if (parameter.flags.frozen) continue;
      const int64_t stride = std::max<int64_t>(1, parameter.dims.numel() / 12);
      for (int64_t i = 0; i < parameter.dims.numel(); i += stride) {
        double& value = values.as<double>()[parameter.offset + i];
        const double original = value;
        value = original + 1e-5;
        const double above = loss();
        value = original - 1e-5;
        const double below = loss();
        value = original;
        const double numeric = (above - below) / 2e-5;
        const double error = std::fabs(numeric - analytic.get(parameter.offset + i));
        EXPECT_LE(error, 1e-7 * std::max(1.0, std::fabs(numeric)))
            << parameter.name << " element " << i;
        difference += error * error;
        norm += numeric * numeric;
      }
    }
    EXPECT_LE(std::sqrt(difference / norm), kGradientCheck);
  }
}

TEST_P(ModelPatterns, RecomputationChangesNoBit) {
  Harness plain(tiny(GetParam()), DType::f32);
  StepStatistics expected;
  const double loss = plain.train(&expected);
  for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
    Harness replayed(tiny(GetParam()), DType::f32, recompute);
    StepStatistics statistics;
    EXPECT_EQ(replayed.train(&statistics), loss);
    EXPECT_TRUE(bit_equal(replayed.gradients, plain.gradients));
    EXPECT_EQ(statistics.balance_loss, expected.balance_loss);
    EXPECT_EQ(statistics.expert_counts, expected.expert_counts);
    EXPECT_LE(replayed.ctx.saved().peak(), plain.ctx.saved().peak());
  }
}

// Matrix products overwrite their gradients, and whatever else there is was zeroed.
TEST_P(ModelPatterns, GradientsMayStartFromAnything) {
  Harness zeroed(tiny(GetParam()), DType::f64), begun(tiny(GetParam()), DType::f64);
  begun.gradients.fill(std::nan(""));
  zeroed.train();
  begun.store.begin_gradients(begun.ctx, begun.gradients);
  begun.train();
  for (int64_t i = 0; i < zeroed.store.flat_size(); ++i)
    ASSERT_EQ(begun.gradients.get(i), zeroed.gradients.get(i)) << "element " << i;
  // Once more, now added.
  begun.store.bind_gradients(begun.gradients);
  zeroed.train();
  begun.train();
  for (int64_t i = 0; i < zeroed.store.flat_size(); ++i)
    ASSERT_EQ(begun.gradients.get(i), zeroed.gradients.get(i)) << "element " << i;
}

TEST_P(ModelPatterns, StepsAgreeWithTheForward) {
  Harness h(tiny(GetParam()), DType::f32);
  const int64_t B = 2, T = 13, V = 11;
  const TestRows one_document(B, T);
  Tensor whole({B, T, V}, DType::f32), stepped({B, T, V}, DType::f32), logits({B, V}, DType::f32);
  h.model.logits(h.ctx, {.tokens = h.tokens, .targets = {}, .rows = one_document}, whole);
  std::vector<Tensor> states;
  std::vector<TensorView> views;
  for (const StateTensor& spec : h.model.state_spec(B, T)) {
    states.push_back(zeros(spec.dims, spec.dtype));
    views.push_back(states.back());
  }
  Tensor token({B}, DType::i32);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t b = 0; b < B; ++b) token.set(b, h.tokens.get(b * T + t));
    h.model.step(h.ctx, token.view(), t, views, logits);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t v = 0; v < V; ++v) stepped.set((b * T + t) * V + v, logits.get(b * V + v));
    }
  }
  EXPECT_LE(relative_error(stepped, whole), kGeneration);
}

TEST_P(ModelPatterns, EveryGradientIsReportedOnceAfterItIsComplete) {
  Harness h(tiny(GetParam()), DType::f32);
  std::vector<int> reported(h.store.parameters().size(), 0);
  std::vector<Tensor> at_report(reported.size());
  h.model.train(h.ctx, h.input(), {.loss = h.loss, .gradient_ready = [&](ParameterId id) {
                                     ++reported[id.index];
                                     at_report[id.index] = copy_of(h.store.grad(id));
                                   }});
  for (size_t i = 0; i < reported.size(); ++i) {
    EXPECT_EQ(reported[i], 1) << h.store.parameters()[i].name;
    EXPECT_TRUE(bit_equal(at_report[i], copy_of(h.store.grad({int32_t(i)}))));
  }
}

TEST_P(ModelPatterns, CountingRunGivesTheExactPeaks) {
  Harness h(tiny(GetParam()), DType::f32);
  Arena saved = Arena::counting("saved", kCpu), scratch = Arena::counting("scratch", kCpu);
  const Context counting{
      .device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
  h.model.train(counting, h.input(), {.loss = h.loss});
  h.train();
  EXPECT_EQ(saved.peak(), h.ctx.saved().peak());
  EXPECT_EQ(scratch.peak(), h.ctx.scratch().peak());
}

// Scratch that ends too early makes operators fail, one after the other.
TEST(ModelErrors, SayWhereTheyAre) {
  Harness h(tiny("M-"), DType::f32);
  h.train();
  std::set<std::string> places;
  for (size_t bytes = 1024; bytes < h.ctx.scratch().peak(); bytes += 256) {
    Arena scratch("scratch", bytes, kCpu);
    Context ctx = h.ctx;
    ctx.scratch = &scratch;
    try {
      h.model.train(ctx, h.input(), {.loss_scale = h.scale, .loss = h.loss});
      ADD_FAILURE() << "ran with " << bytes << " bytes";
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("arena 'scratch'"), std::string::npos) << message;
      const size_t place = message.find("; in the ");
      if (place != std::string::npos) places.insert(message.substr(place));
    }
  }
  EXPECT_TRUE(places.contains("; in the forward of branches.0.mamba2, x (2, 13, 8) f32"));
  EXPECT_TRUE(places.contains("; in the backward of branches.0.mamba2, x (2, 13, 8) f32"));
}

INSTANTIATE_TEST_SUITE_P(Stacks, ModelPatterns,
                         testing::Values("M", "S", "*-", "-", "E", "M-M*ME", "S-*E", "ME*-SE"),
                         [](const auto& info) { return "stack" + std::to_string(info.index); });

TEST(Model, TargetsOfMinusOneAddNothing) {
  Harness h(tiny("M"), DType::f64);
  const double loss = h.evaluate();
  h.targets.set(0, -1);
  const double fewer = h.evaluate();
  EXPECT_LT(fewer, loss);
  h.targets.fill(-1);
  EXPECT_EQ(h.evaluate(), 0);
}

// Documents packed into one row give what they give in rows of their own.
TEST(Model, PackedDocumentsDoNotSeeEachOther) {
  for (const char* pattern : {"M-M*", "S*E"}) {
    Harness h(tiny(pattern), DType::f64);
    const int64_t T = 13, V = 11, cut = 5;
    const TestRows packed(1, T, {{cut}});
    const TestRows first(1, cut), second(1, T - cut);
    Tensor tokens({1, T}, DType::i32), head({1, cut}, DType::i32), tail({1, T - cut}, DType::i32);
    for (int64_t t = 0; t < T; ++t) {
      tokens.set(t, h.tokens.get(t));
      (t < cut ? head : tail).set(t < cut ? t : t - cut, h.tokens.get(t));
    }
    Tensor whole({1, T, V}, DType::f64), a({1, cut, V}, DType::f64), b({1, T - cut, V}, DType::f64);
    h.model.logits(h.ctx, {.tokens = tokens, .targets = {}, .rows = packed}, whole);
    h.model.logits(h.ctx, {.tokens = head, .targets = {}, .rows = first}, a);
    h.model.logits(h.ctx, {.tokens = tail, .targets = {}, .rows = second}, b);
    for (int64_t i = 0; i < T * V; ++i) {
      const double alone = i < cut * V ? a.get(i) : b.get(i - cut * V);
      EXPECT_NEAR(whole.get(i), alone, 1e-12) << pattern << " logit " << i;
    }
  }
}

}  // namespace
}  // namespace sluice::test
