// One table of names per Hugging Face family, read in both directions: a sluice parameter, a part
// of its rows, or one expert's slice of it, and the tensor of the file that holds it. A file may
// spell the same layout in several ways, its style.
#pragma once

#include <string>
#include <vector>

#include "layers/model_config.h"
#include "layers/parameter_store.h"
#include "trainer/hf/config_mapping.h"
#include "trainer/hf/safetensors.h"
#include "trainer/source_tensor.h"

namespace sluice {

struct NamingStyle {
  std::string prefix;          // "backbone." or "model."
  std::string embedding;       // "embeddings.weight", ...
  bool fused_experts = false;  // one tensor for all experts of a layer
};

// What is written: the spelling that old and new readers know.
NamingStyle canonical_style(HfFamily family);
// What a file with these tensors uses.
NamingStyle detect_style(HfFamily family, const SafetensorsFolder& folder);

// The family's tensors of a model, every element of every parameter exactly once. Throws UsageError
// naming the branch or parameter that the family's layout cannot hold.
std::vector<SourceTensor> hf_tensors(HfFamily family, const std::vector<BranchConfig>& branches,
                                     const ParameterStore& store, const NamingStyle& style);

// Compares with what the folder holds before anything is allocated by it: missing and unexpected
// names together, with did-you-mean, and shapes that differ. Throws DataError.
void check_hf_tensors(HfFamily family, const std::vector<SourceTensor>& tensors,
                      const SafetensorsFolder& folder);
// Fills the (frozen) store's values. A tied head that the folder stores a second time must equal
// the embedding, else DataError.
void load_hf_tensors(const std::vector<SourceTensor>& tensors, const SafetensorsFolder& folder,
                     ParameterStore& store);

}  // namespace sluice
