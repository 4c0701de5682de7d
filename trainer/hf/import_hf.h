// A Hugging Face folder as a checkpoint of sluice's own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace sluice {

struct HfImport {
  int64_t parameters = 0;              // elements
  int64_t bytes = 0;                   // written
  std::optional<double> logits_error;  // relative, by norm, where the folder has reference logits
  std::vector<std::string> notes;      // see LoadedModel
};

// Writes the checkpoint folder `output`, which must not exist. It is read back before it gets this
// name; if the Hugging Face folder holds tokens.json and expected.safetensors, the logits of what
// was read back are compared with the reference's. Throws UsageError, DataError (logits that
// differ too) or IoError, and leaves nothing behind then.
HfImport import_hf(const std::string& folder, const std::string& output);

}  // namespace sluice
