#include "trainer/model_source.h"

#include <sys/stat.h>

#include "kernels/core/device_memory.h"
#include "kernels/core/error.h"
#include "trainer/checkpoint_model.h"
#include "trainer/hf/hf_model.h"

namespace sluice {

namespace {

bool is_folder(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

void drop_losses(MoeConfig& moe) {
  moe.aux_loss = 0;
  moe.z_loss = 0;
}

}  // namespace

LoadedModel load_model(const std::string& path, DType dtype) {
  if (is_hf_folder(path)) return load_hf_model(path, dtype);
  if (is_checkpoint_source(path)) {
    LoadedModel loaded = load_checkpoint_model(path, dtype);
    loaded.tensors = own_tensors(*loaded.store);
    return loaded;
  }
  throw UsageError(
      concat(path, is_folder(path) ? ": holds no model" : ": is no folder",
             "; a model is a run folder, a checkpoint folder, or a Hugging Face folder with "
             "config.json and model.safetensors"));
}

LoadedModel move_model(LoadedModel loaded, Device device, DType dtype) {
  if (loaded.model->device() == device && loaded.model->dtype() == dtype) return loaded;
  auto store = std::make_unique<ParameterStore>(dtype, device);
  auto model = std::make_unique<Model>(loaded.model->config(), *store);
  store->freeze();
  const OwnedStream stream(device);
  // One by one: stores of different dtypes lay their parameters out differently.
  for (int32_t i = 0; i < int32_t(store->parameters().size()); ++i) {
    const TensorView from = loaded.store->view(loaded.store->values(), {i});
    const TensorView to = store->view(store->values(), {i});
    SLUICE_CHECK(from.dims == to.dims && from.dtype == to.dtype && from.device.is_cpu(),
                 store->parameter({i}).name, " of ", to_string(from.dims), " moves to one of ",
                 to_string(to.dims));
    copy_bytes(to.data, device, from.data, kCpu, from.numel() * size_of(from.dtype), stream);
  }
  store->round_values(stream);
  Stream(stream).sync();
  loaded.store = std::move(store);
  loaded.model = std::move(model);
  return loaded;
}

std::vector<SourceTensor> own_tensors(const ParameterStore& store) {
  std::vector<SourceTensor> tensors;
  for (const Parameter& parameter : store.parameters()) {
    const Dims& dims = parameter.dims;
    tensors.push_back({.name = parameter.name,
                       .shape = {dims.size.begin(), dims.size.begin() + dims.rank},
                       .parameter = {int32_t(tensors.size())},
                       .begin = 0});
  }
  return tensors;
}

ModelConfig without_auxiliary_losses(ModelConfig config) {
  drop_losses(std::get<MoeConfig>(config.sections));
  for (BranchConfig& branch : config.stack.branches) {
    if (MoeConfig* const moe = std::get_if<MoeConfig>(&branch.config)) drop_losses(*moe);
  }
  return config;
}

}  // namespace sluice
