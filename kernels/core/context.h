// What every operator and layer is given beside its tensors. It stays at these five fields.
#pragma once

#include "kernels/core/arena.h"
#include "kernels/core/rng.h"
#include "kernels/core/stream.h"

namespace sluice {

struct Context {
  Device device = kCpu;
  Stream stream;
  Arena* saved = nullptr;    // what the backward pass needs
  Arena* scratch = nullptr;  // what nobody needs once the caller's scope ends
  RngKey rng;

  // In counting mode dispatchers check their arguments, allocate their scratch, and return.
  bool counting() const { return saved->counting(); }
};

}  // namespace sluice
