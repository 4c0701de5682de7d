// Loss, logits and gradients of a fixture of tests/golden/hf against those that transformers found.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/support/fixtures.h"
#include "tests/support/tolerance.h"
#include "trainer/hf/safetensors.h"
#include "trainer/score.h"

namespace sluice::test {

class ExpectedScores {
 public:
  explicit ExpectedScores(const std::string& family)
      : folder_(fixture_folder(family)), file_(folder_ + "/expected.safetensors") {}

  const std::string& folder() const { return folder_; }
  const std::vector<SafetensorsEntry>& tensors() const { return file_.tensors(); }
  std::vector<double> values(const std::string& name) const {
    const SafetensorsEntry* const entry = file_.find(name);
    SLUICE_CHECK(entry != nullptr, "no ", name);
    std::vector<double> values(entry->numel());
    file_.read_values(*entry, DType::f64, values.data());
    return values;
  }

 private:
  std::string folder_;
  SafetensorsFile file_;
};

template <class T>
double relative_error(const T* got, const std::vector<double>& expected) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (double(got[i]) - expected[i]) * (double(got[i]) - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

// `loaded` is the fixture's model, in f32, on any device.
inline void expect_scores(const LoadedModel& loaded, const ExpectedScores& expected,
                          Stream stream = {}) {
  const TokenRows rows =
      read_token_rows(expected.folder() + "/tokens.json", loaded.config.vocab_size);
  const Scores scores = score(loaded, rows, {.logits = true, .gradients = true}, stream);
  EXPECT_NEAR(scores.loss, expected.values("loss")[0], kFixtureLoss);
  EXPECT_EQ(scores.targets, 138);
  EXPECT_LE(relative_error(scores.logits.as<float>(), expected.values("logits")), kFixtureLogits);

  // Every tensor of the file has a gradient, and the other way round.
  size_t gradients = 0;
  for (const SafetensorsEntry& entry : expected.tensors())
    gradients += entry.name.starts_with("grad.");
  EXPECT_EQ(loaded.tensors.size(), gradients);
  for (const SourceTensor& tensor : loaded.tensors) {
    const std::vector<double> gradient = expected.values("grad." + tensor.name);
    const TensorView got = loaded.store->view(scores.gradients, tensor.parameter);
    EXPECT_LE(relative_error(got.as<float>() + tensor.begin, gradient), kFixtureGradient)
        << tensor.name;
  }
}

}  // namespace sluice::test
