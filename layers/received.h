// Memory for what a forward receives from other ranks: given by the caller, who keeps it for a
// replay, or in ctx.saved.
#pragma once

#include "layers/layer.h"

namespace sluice {

inline Received new_received(const Context& ctx, const std::vector<StateTensor>& spec) {
  Received received;
  for (const StateTensor& wanted : spec) {
    received.tensors.push_back(ctx.saved->alloc(wanted.dims, wanted.dtype));
  }
  return received;
}

inline Received given_or_new(const Context& ctx, const Received* given,
                             const std::vector<StateTensor>& spec) {
  if (given == nullptr) return new_received(ctx, spec);
  SLUICE_CHECK(given->tensors.size() == spec.size(), spec.size(), " tensors are received, got ",
               given->tensors.size());
  return *given;
}

}  // namespace sluice
