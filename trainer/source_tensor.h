// How a file that parameters come from names them: the same table serves loading, the dump of
// gradients under the file's own names, and saving.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layers/parameter_store.h"

namespace sluice {

// A tensor of the file and the elements [begin, begin + numel) of the parameter that it is.
struct SourceTensor {
  std::string name;
  std::vector<int64_t> shape;
  ParameterId parameter;
  int64_t begin = 0;

  int64_t numel() const {
    int64_t product = 1;
    for (const int64_t dim : shape) product *= dim;
    return product;
  }
};

}  // namespace sluice
