// A step engine on one device, that trains on synthetic rows.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "kernels/core/host_copy.h"
#include "parallel/self_communicator.h"
#include "trainer/step_engine.h"
#include "trainer/verify/synthetic_rows.h"

namespace sluice::test {

inline constexpr Device kGpu{Device::Kind::cuda, 0};

// A model of any layers in little time. Norms, decays and biases lie apart from what bf16 rounds,
// and experts from both.
inline Config small_config(const std::string& pattern) {
  Config config;
  config.model.d_model = 64;
  config.model.vocab_size = 97;
  config.model.stack.pattern = pattern;
  std::get<Mamba2Config>(config.model.sections) = {.head_dim = 16, .state_dim = 16, .chunk = 16};
  std::get<MambaConfig>(config.model.sections).state_dim = 8;
  std::get<AttentionConfig>(config.model.sections).heads = 4;
  std::get<MlpConfig>(config.model.sections).hidden = 128;
  MoeConfig& moe = std::get<MoeConfig>(config.model.sections);
  moe.experts = 4;
  moe.hidden = 64;
  config.train.seq_len = 64;
  config.train.global_batch = 8;
  config.train.micro_batch = 2;
  return config;
}

class EngineOn {
 public:
  // One rank.
  EngineOn(const Config& config, DType dtype, Device device)
      : config_(config),
        stream_(std::make_unique<OwnedStream>(device)),
        place_{.device = device, .stream = *stream_},
        self_(make_self_communicator(place_)),
        self_mesh_(std::make_unique<Mesh>(*self_, MeshShape{})),
        engine_(config, *self_mesh_, dtype, place_),
        rows_(rows_of(config)) {}
  // One of several; the mesh must outlive it.
  EngineOn(const Config& config, DType dtype, const Mesh& mesh, const Place& place)
      : config_(config),
        place_(place),
        engine_(config, mesh, dtype, place),
        rows_(rows_of(config)) {}

  StepEngine& engine() { return engine_; }
  const Place& place() const { return place_; }
  const SyntheticRows& rows() const { return rows_; }

  StepReport step(bool stage_next = false) {
    const int64_t of_step = engine_.num_micro_batches();
    return engine_.step({.lr = 1e-3,
                         .targets = rows_.count_targets(steps_++, config_.train.global_batch),
                         .next_batch =
                             [this, of_step] {
                               const int64_t n = taken_++;
                               return rows_.batch(n / of_step, engine_.first_row(n % of_step),
                                                  engine_.micro_batch_rows(), {});
                             },
                         .stage_next = stage_next});
  }

  // Every value to what bf16 can hold, so that all precisions begin with the same numbers.
  void round_values() {
    const HostCopy host(engine_.store().values(), place_.stream);
    for_each(host.view(), [](auto& value) { value = float(bf16(float(value))); });
    host.write_back();
    engine_.store().round_values(place_.stream);
  }
  // Of the last step, parameter by parameter, without padding.
  std::vector<double> gradients() {
    const ParameterStore& store = engine_.store();
    const Buffer storage(store.flat_size() * size_of(store.master_dtype()), place_.device);
    const TensorView flat(storage.data(), {store.flat_size()}, store.master_dtype(), place_.device);
    engine_.gather_gradients(flat);
    return elements(flat);
  }
  std::vector<double> values() { return elements(engine_.store().values()); }

 private:
  template <class Body>
  static void for_each(const TensorView& view, Body&& body) {
    for (int64_t i = 0; i < view.numel(); ++i) {
      if (view.dtype == DType::f64) {
        body(view.as<double>()[i]);
      } else {
        body(view.as<float>()[i]);
      }
    }
  }
  std::vector<double> elements(const TensorView& flat) {
    const HostCopy host(flat, place_.stream);
    std::vector<double> all;
    for (size_t i = 0; i < engine_.store().parameters().size(); ++i) {
      for_each(engine_.store().view(host.view(), {int32_t(i)}),
               [&](auto& value) { all.push_back(double(value)); });
    }
    return all;
  }

  static SyntheticRows rows_of(const Config& config) {
    return {.seed = 5, .row_tokens = config.train.seq_len, .vocab_size = config.model.vocab_size};
  }

  Config config_;
  std::unique_ptr<OwnedStream> stream_;
  Place place_;
  std::unique_ptr<Communicator> self_;
  std::unique_ptr<Mesh> self_mesh_;
  StepEngine engine_;
  SyntheticRows rows_;
  int64_t steps_ = 0;
  int64_t taken_ = 0;
};

// |a - b| / |b|
inline double norm_error(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace sluice::test
