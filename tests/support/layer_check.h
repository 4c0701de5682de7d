// Checks that every layer must pass, given how to build it.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>

#include "layers/layer.h"
#include "layers/layer_build.h"
#include "layers/parameter_store.h"
#include "tests/support/batch.h"
#include "tests/support/gradcheck.h"

namespace sluice::test {

using MakeLayer = std::function<std::unique_ptr<Layer>(const LayerBuild&)>;

// A layer with parameters of its own, perturbed from their initial values so that nothing is 0
// or 1.
struct LayerHarness {
  LayerHarness(const MakeLayer& make, int64_t d_model, DType dtype, size_t bytes = size_t{16} << 20)
      : ctx(bytes), store(dtype) {
    layer = make({.store = store, .prefix = "branches.0.layer.", .d_model = d_model});
    store.freeze();
    store.initialise(7);
    for (size_t i = 0; i < store.parameters().size(); ++i) {
      const TensorView value = store.value({int32_t(i)});
      const std::string& name = store.parameters()[i].name;
      const RngKey key{.seed = 11, .stream = hash_name(name)};
      // A choice bias moves experts, not gradients; keep it away from ties.
      for (int64_t e = 0; e < value.numel(); ++e) add_to(value, e, 0.05 * random_normal(key, e));
    }
    gradients = Tensor({store.flat_size()}, dtype);
    gradients.fill(0);
    store.bind_gradients(gradients);
  }
  static void add_to(const TensorView& view, int64_t index, double by) {
    dispatch_float(view.dtype, [&]<class T>() { view.as<T>()[index] += T(by); });
  }
  Tensor parameter(int32_t index, bool gradient) const {
    Tensor copy(store.parameters()[index].dims, store.dtype());
    const TensorView view = gradient ? store.grad({index}) : store.value({index});
    dispatch_float(store.dtype(), [&]<class T>() {
      for (int64_t i = 0; i < copy.numel(); ++i) copy.set(i, double(view.as<T>()[i]));
    });
    return copy;
  }
  void set_parameter(int32_t index, const Tensor& value) {
    const TensorView view = store.value({index});
    dispatch_float(store.dtype(), [&]<class T>() {
      for (int64_t i = 0; i < value.numel(); ++i) view.as<T>()[i] = T(value.get(i));
    });
  }
  TestContext ctx;
  ParameterStore store;
  std::unique_ptr<Layer> layer;
  Tensor gradients;
};

// Every parameter's gradient against central differences of `loss`, in double.
inline void check_parameter_gradients(LayerHarness& h, const std::function<double()>& loss,
                                      int64_t max_elements) {
  for (int32_t i = 0; i < int32_t(h.store.parameters().size()); ++i) {
    if (h.store.parameters()[i].flags.frozen) continue;
    Tensor value = h.parameter(i, false);
    const Tensor gradient = h.parameter(i, true);
    const auto loss_of_value = [&] {
      h.set_parameter(i, value);
      return loss();
    };
    check_gradients(loss_of_value, {{h.store.parameters()[i].name, &value, &gradient}},
                    kGradientCheck, max_elements);
    h.set_parameter(i, value);
  }
}

// Input and every parameter against central differences, in double; auxiliary losses included.
inline void check_layer_gradients(const MakeLayer& make, const TestRows& rows, int64_t d_model) {
  const Rows& r = rows;
  const Dims dims{r.rows, r.tokens, d_model};
  LayerHarness h(make, d_model, DType::f64);
  Tensor x = normal(dims, DType::f64, 1), y(dims, DType::f64);
  const Tensor dy = normal(dims, DType::f64, 2);
  Tensor dx(dims, DType::f64);
  {
    const ArenaScope saved(h.ctx.saved());
    const auto tape = h.layer->forward(h.ctx, r, {.x = x, .y = y});
    h.layer->backward(h.ctx, r, {.dy = dy, .dx = dx}, *tape);
  }
  EXPECT_EQ(h.ctx.scratch().used(), 0u) << "scratch memory was not released";
  const auto loss = [&] {
    const ArenaScope saved(h.ctx.saved());
    const StatisticsBuffer statistics;
    h.layer->forward(h.ctx, r, {.x = x, .y = y, .statistics = &statistics.sink()});
    return weighted_sum({&y}, {&dy}) + statistics.read(h.ctx).auxiliary_loss();
  };
  check_gradients(loss, {{"x", &x, &dx}}, kGradientCheck, 120);
  check_parameter_gradients(h, loss, 60);
}

// Gradients accumulate: a second backward doubles them. And reruns are bit-equal.
inline void check_layer_accumulates(const MakeLayer& make, const TestRows& rows, int64_t d_model) {
  const Rows& r = rows;
  const Dims dims{r.rows, r.tokens, d_model};
  LayerHarness h(make, d_model, DType::f32);
  const Tensor x = normal(dims, DType::f32, 1), dy = normal(dims, DType::f32, 2);
  const auto pass = [&] {
    Tensor y(dims, DType::f32), dx(dims, DType::f32);
    const ArenaScope saved(h.ctx.saved());
    const auto tape = h.layer->forward(h.ctx, r, {.x = x, .y = y});
    h.layer->backward(h.ctx, r, {.dy = dy, .dx = dx}, *tape);
    return std::pair(std::move(y), std::move(dx));
  };
  const auto [y1, dx1] = pass();
  const Tensor once = h.gradients.clone();
  const auto [y2, dx2] = pass();
  EXPECT_TRUE(bit_equal(y1, y2));
  EXPECT_TRUE(bit_equal(dx1, dx2));
  Tensor twice = once.clone();
  for (int64_t i = 0; i < twice.numel(); ++i) twice.set(i, 2 * once.get(i));
  EXPECT_LE(relative_error(h.gradients, twice), 1e-6);
}

// Token by token from a recurrent state gives what the forward gives, for a row of one document.
inline void check_layer_steps(const MakeLayer& make, int64_t B, int64_t T, int64_t d_model) {
  const TestRows rows(B, T);
  const Dims dims{B, T, d_model};
  LayerHarness h(make, d_model, DType::f64);
  const Tensor x = normal(dims, DType::f64, 1);
  Tensor y(dims, DType::f64), stepped(dims, DType::f64);
  const ArenaScope saved(h.ctx.saved());
  h.layer->forward(h.ctx, rows, {.x = x, .y = y});
  std::vector<Tensor> states;
  std::vector<TensorView> views;
  for (const StateTensor& spec : h.layer->state_spec(B, T)) {
    states.push_back(zeros(spec.dims, spec.dtype));
    views.push_back(states.back());
  }
  Tensor token({B, d_model}, DType::f64), out({B, d_model}, DType::f64);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < d_model; ++i)
        token.set(b * d_model + i, x.get((b * T + t) * d_model + i));
    }
    h.layer->step(h.ctx, {.x = token, .y = out, .position = t, .states = views});
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < d_model; ++i)
        stepped.set((b * T + t) * d_model + i, out.get(b * d_model + i));
    }
  }
  EXPECT_LE(relative_error(stepped, y), 1e-11);
}

// The counting twin sees exactly the peaks of the real run.
inline void check_layer_counting(const MakeLayer& make, const TestRows& rows, int64_t d_model) {
  const Rows& r = rows;
  const Dims dims{r.rows, r.tokens, d_model};
  LayerHarness h(make, d_model, DType::f32);
  const Tensor x = normal(dims, DType::f32, 1), dy = normal(dims, DType::f32, 2);
  Tensor y(dims, DType::f32), dx(dims, DType::f32);
  Arena saved = Arena::counting("saved", kCpu);
  Arena scratch = Arena::counting("scratch", kCpu);
  const Context counting{
      .device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
  for (const Context& ctx : {counting, static_cast<const Context&>(h.ctx)}) {
    const auto tape = h.layer->forward(ctx, r, {.x = x, .y = y});
    h.layer->backward(ctx, r, {.dy = dy, .dx = dx}, *tape);
  }
  EXPECT_EQ(saved.peak(), h.ctx.saved().peak());
  EXPECT_EQ(scratch.peak(), h.ctx.scratch().peak());
}

inline void check_layer(const MakeLayer& make, int64_t d_model) {
  const TestRows packed(2, 13, {{5, 6}, {1, 12}});
  const TestRows one(1, 1);
  check_layer_gradients(make, packed, d_model);
  check_layer_gradients(make, one, d_model);
  check_layer_accumulates(make, packed, d_model);
  check_layer_steps(make, 2, 11, d_model);
  check_layer_counting(make, packed, d_model);
}

}  // namespace sluice::test
