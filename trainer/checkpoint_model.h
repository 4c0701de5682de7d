// A model from a checkpoint folder, or from the newest good checkpoint of a run folder.
#pragma once

#include <string>

#include "trainer/model_source.h"

namespace sluice {

// Whether the folder is one of the two.
bool is_checkpoint_source(const std::string& path);

// dtype f32, or f64 (the stored values widened). Throws DataError, IoError.
LoadedModel load_checkpoint_model(const std::string& path, DType dtype);

}  // namespace sluice
