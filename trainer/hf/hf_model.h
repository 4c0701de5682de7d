// Models from Hugging Face folders: config.json, model.safetensors or its shards.
#pragma once

#include <string>

#include "trainer/model_source.h"

namespace sluice {

// Whether the path is a folder with a config.json.
bool is_hf_folder(const std::string& path);

// Every name, shape and dtype is compared before anything is allocated by them. Throws DataError or
// IoError.
LoadedModel load_hf_model(const std::string& folder, DType dtype);

}  // namespace sluice
