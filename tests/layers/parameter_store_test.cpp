#include "layers/parameter_store.h"

#include <gtest/gtest.h>

#include "layers/initializers.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

TEST(ParameterStore, LaysOutGroupsOneAfterTheOther) {
  ParameterStore store(DType::f32);
  const ParameterId a = store.add("a", {3, 5}, constant(1));
  const ParameterId expert =
      store.add("expert", {2, 2, 2}, constant(2), {.group = ReduceGroup::expert});
  const ParameterId b = store.add("b", {65}, constant(3));
  store.freeze();
  EXPECT_EQ(store.parameter(a).offset, 0);
  EXPECT_EQ(store.parameter(b).offset, 64);  // 256 bytes
  EXPECT_EQ(store.parameter(expert).offset, 64 + 128);
  EXPECT_EQ(store.flat_size(), 64 + 128 + 64);
  EXPECT_EQ(store.num_elements(), 15 + 8 + 65);
  store.initialise(1);
  EXPECT_EQ(store.value(b).as<float>()[64], 3);
  EXPECT_EQ(store.values().as<float>()[15], 0);  // padding
}

// So that of rounded parameters the copies can travel, and of the others the masters.
TEST(ParameterStore, ABf16ModelKeepsWhatIsReadPreciselyApart) {
  ParameterStore store(DType::bf16);
  const ParameterId matrix = store.add("matrix", {65}, constant(1));
  const ParameterId norm = store.add("norm", {3}, constant(1), {.precise = true});
  const ParameterId expert = store.add("expert", {2}, constant(1), {.group = ReduceGroup::expert});
  store.freeze(/*allocate=*/false, {.dense = 256, .expert = 1});
  const std::vector<ArenaSection>& sections = store.sections();
  ASSERT_EQ(sections.size(), 3u);
  const auto check = [&](size_t index, ParameterId id, ReduceGroup group, bool rounded,
                         FlatSpan at) {
    EXPECT_EQ(sections[index].group, group);
    EXPECT_EQ(sections[index].rounded, rounded);
    EXPECT_EQ(sections[index].span.begin, at.begin);
    EXPECT_EQ(sections[index].span.end, at.end);
    EXPECT_EQ(store.parameter(id).offset, at.begin);
  };
  check(0, norm, ReduceGroup::dense, false, {0, 256});
  check(1, matrix, ReduceGroup::dense, true, {256, 512});
  check(2, expert, ReduceGroup::expert, true, {512, 576});
  EXPECT_EQ(store.flat_size(), 576);
}

TEST(ParameterStore, InitialValuesDependOnSeedAndNameAlone) {
  const auto values = [](uint64_t seed, bool with_other) {
    ParameterStore store(DType::f64);
    if (with_other) store.add("other", {7}, sluice::normal(1));
    const ParameterId id = store.add("weight", {4, 4}, sluice::normal(0.5));
    store.freeze();
    store.initialise(seed);
    const double* data = store.value(id).as<double>();
    return std::vector<double>(data, data + 16);
  };
  EXPECT_EQ(values(1, false), values(1, true));
  EXPECT_NE(values(1, false), values(2, false));
}

TEST(ParameterStore, PartsOfAParameterHaveTheValuesOfTheWhole) {
  const auto values = [](int64_t shards, int64_t shard) {
    ParameterStore store(DType::f64);
    const ParameterId id =
        store.add("experts", {6, 3, 5}, sluice::normal(0.5),
                  {.group = ReduceGroup::expert, .shards = shards, .shard = shard});
    store.freeze();
    store.initialise(1);
    const Parameter& parameter = store.parameter(id);
    EXPECT_EQ(parameter.global_dims, (Dims{6, 3, 5}));
    EXPECT_EQ(parameter.dims, (Dims{6 / shards, 3, 5}));
    EXPECT_EQ(parameter.first, 6 / shards * shard);
    EXPECT_EQ(store.num_elements(), 6 * 3 * 5);
    EXPECT_EQ(store.value(id).dims, parameter.dims);
    const double* data = store.value(id).as<double>();
    return std::vector<double>(data, data + parameter.dims.numel());
  };
  const std::vector<double> whole = values(1, 0);
  for (const int64_t shards : {2, 3, 6}) {
    std::vector<double> joined;
    for (int64_t shard = 0; shard < shards; ++shard) {
      const std::vector<double> part = values(shards, shard);
      joined.insert(joined.end(), part.begin(), part.end());
    }
    EXPECT_EQ(joined, whole) << shards << " parts";
  }
}

TEST(ParameterStore, RefusesPartsThatAreNotEqual) {
  ParameterStore store(DType::f32);
  EXPECT_THROW(store.add("a", {6, 2}, constant(0), {.shards = 4}), Error);
  EXPECT_THROW(store.add("b", {6, 2}, constant(0), {.shards = 3, .shard = 3}), Error);
}

TEST(ParameterStore, RefusesDuplicatesAndLateAdditions) {
  ParameterStore store(DType::f32);
  store.add("a", {1}, constant(0));
  EXPECT_THROW(store.add("a", {1}, constant(0)), Error);
  store.freeze();
  EXPECT_THROW(store.add("b", {1}, constant(0)), Error);
}

TEST(Initializers, FollowThePapers) {
  const RngKey key{.seed = 1, .stream = 2};
  for (int64_t i = 0; i < 200; ++i) {
    const double step = std::log1p(std::exp(dt_bias(1e-3, 1e-1, 1e-4)(key, i)));
    EXPECT_GE(step, 1e-3 * (1 - 1e-9));
    EXPECT_LE(step, 1e-1 * (1 + 1e-9));
    const double A = std::exp(A_log_uniform(1, 16)(key, i));
    EXPECT_GE(A, 1);
    EXPECT_LE(A, 16);
    EXPECT_NEAR(std::exp(A_log_s4d(16)(key, i)), double(i % 16 + 1), 1e-12);
  }
}

}  // namespace
}  // namespace sluice::test
