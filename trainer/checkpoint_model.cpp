#include "trainer/checkpoint_model.h"

#include <algorithm>

#include "kernels/core/dispatch.h"
#include "trainer/checkpoint/folders.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/checkpoint/verify.h"
#include "trainer/config.h"

namespace sluice {

namespace {

bool is_checkpoint_folder(const std::string& path) { return exists(path + "/" + kManifestName); }

VerifiedCheckpoint find_newest(const std::string& path, std::vector<std::string>& notes) {
  SelfPeers self;
  if (is_checkpoint_folder(path)) return verify_checkpoint(path, self);
  FoundCheckpoint found = find_checkpoint(path + "/checkpoints", self);
  notes = std::move(found.warnings);
  if (!found.checkpoint) throw UsageError(path + ": the run has no checkpoint yet");
  return std::move(*found.checkpoint);
}

}  // namespace

bool is_checkpoint_source(const std::string& path) {
  return is_checkpoint_folder(path) || exists(path + "/checkpoints");
}

LoadedModel load_checkpoint_model(const std::string& path, DType dtype) {
  LoadedModel loaded;
  const VerifiedCheckpoint found = find_newest(path, loaded.notes);
  const Config config = parse_config(found.folder, found.manifest.state.config);
  loaded.config = config.model;
  loaded.seq_len = config.train.seq_len;
  loaded.store = std::make_unique<ParameterStore>(dtype);
  loaded.model = std::make_unique<Model>(without_auxiliary_losses(config.model), *loaded.store);
  loaded.store->freeze();

  // Values are stored in f32, the masters; in f64 they are widened.
  std::vector<std::vector<float>> values;
  std::vector<TensorSink> sinks;
  for (const Parameter& parameter : loaded.store->parameters()) {
    values.emplace_back(parameter.dims.numel());
    sinks.push_back({parameter.name, DType::f32, parameter.dims, whole_region(parameter.dims),
                     values.back().data()});
  }
  load_checkpoint(found.folder, found.manifest, sinks, LoadScope::model_only);
  dispatch_float(dtype, [&]<class T>() {
    for (size_t i = 0; i < values.size(); ++i) {
      const TensorView value = loaded.store->value({int32_t(i)});
      std::copy(values[i].begin(), values[i].end(), value.as<T>());
    }
  });
  return loaded;
}

}  // namespace sluice
