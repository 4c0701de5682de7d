#include "trainer/model_source.h"

#include <gtest/gtest.h>

#include "tests/support/tiny_run.h"

namespace sluice::test {
namespace {

// A bf16 store lays its parameters out in another order than an f32 store.
TEST(ModelSource, MovesEveryParameterToItsOwnPlace) {
  const TinyRun run("ME*-S");
  const auto fresh = [&] {
    LoadedModel loaded;
    loaded.store = std::make_unique<ParameterStore>(DType::f32);
    loaded.model = std::make_unique<Model>(run.config.model, *loaded.store);
    loaded.store->freeze();
    loaded.store->initialise(4);
    return loaded;
  };
  const LoadedModel original = fresh();
  const LoadedModel moved = move_model(fresh(), kCpu, DType::bf16);
  ASSERT_EQ(moved.model->dtype(), DType::bf16);
  ASSERT_EQ(moved.store->parameters().size(), original.store->parameters().size());
  int64_t num_rounded = 0;
  for (int32_t i = 0; i < int32_t(moved.store->parameters().size()); ++i) {
    const TensorView expected = original.store->value({i});
    const TensorView master = moved.store->view(moved.store->values(), {i});
    const TensorView read = moved.store->value({i});
    num_rounded += read.dtype == DType::bf16;
    for (int64_t k = 0; k < expected.numel(); ++k) {
      const float value = expected.as<float>()[k];
      ASSERT_EQ(master.as<float>()[k], value) << moved.store->parameter({i}).name;
      const float found =
          read.dtype == DType::bf16 ? float(read.as<bf16>()[k]) : read.as<float>()[k];
      ASSERT_EQ(found, read.dtype == DType::bf16 ? float(bf16(value)) : value)
          << moved.store->parameter({i}).name;
    }
  }
  EXPECT_GT(num_rounded, 0);
}

}  // namespace
}  // namespace sluice::test
