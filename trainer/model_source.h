// A model from what a user points at: a Hugging Face folder, a checkpoint, or a run folder.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "layers/model.h"
#include "trainer/source_tensor.h"

namespace sluice {

struct LoadedModel {
  ModelConfig config;                     // as the source states it
  std::unique_ptr<ParameterStore> store;  // filled
  std::unique_ptr<Model> model;           // on that store, without auxiliary losses
  std::vector<SourceTensor> tensors;      // what the source's files call the parameters
  int64_t seq_len = 0;                    // of the rows it was trained on; 0: unknown
  std::vector<std::string> notes;         // for people: defaults taken, differences in training
};

// dtype: f32 or f64. Throws UsageError for a path that is none of the three, DataError or IoError
// for one that cannot be read.
LoadedModel load_model(const std::string& path, DType dtype = DType::f32);

// The same model on another device, and in bf16 if asked for. `loaded` must be in f32, on the CPU.
LoadedModel move_model(LoadedModel loaded, Device device, DType dtype);

// Each parameter whole, under sluice's own name.
std::vector<SourceTensor> own_tensors(const ParameterStore& store);

// The same stack with the coefficients of balance and z losses at 0: what is scored, evaluated or
// sampled from is the cross-entropy alone.
ModelConfig without_auxiliary_losses(ModelConfig config);

}  // namespace sluice
