// Loads tensors from a checkpoint into any layout: whoever stored the elements, and however they
// were cut, each rank gets those it asks for.
#pragma once

#include <string>
#include <vector>

#include "trainer/checkpoint/manifest.h"

namespace sluice {

// Where elements go. A tensor of which a rank holds nothing is given with an empty region, so that
// it counts as known; a tensor may have several sinks.
struct TensorSink {
  std::string name = {};
  DType dtype = DType::f32;
  Dims dims = {};  // global
  Region region = {};
  void* data = nullptr;  // region.count() elements, packed, in host memory
};

enum class LoadScope : uint8_t {
  all,         // weights and the optimizer's state
  model_only,  // weights; what the optimizer has stored is left alone
};

// Every piece that is needed is read once, whole, and checked against its hash. Throws DataError
// before anything is read if the checkpoint's tensors are not the sinks' (all missing, unexpected
// and mismatching ones are named); and if a hash disagrees, after which what the sinks hold is
// worthless.
void load_checkpoint(const std::string& folder, const Manifest& manifest,
                     const std::vector<TensorSink>& sinks, LoadScope scope = LoadScope::all);

}  // namespace sluice
