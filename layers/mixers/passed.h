// What a mixer with a finite state passes on along a row: from rank to rank, and where rows carry
// on earlier ones from step to step.
#pragma once

#include <functional>

#include "layers/received.h"

namespace sluice {

// What enters this rank's tokens, kept for the backward. Without dims where nothing can enter: then
// every row starts and ends on this rank.
struct Passed {
  TensorView halo = {};         // (B, K-1, C): the convolution's inputs before the first token
  TensorView state = {};        // the recurrence's state before the first token
  TensorView transitions = {};  // (ranks, packed size): every rank's, for the reverse fold
  bool filled = false;          // by an earlier run of this forward: nothing travels again
};

// `spec` lists the tensors in the order of the members.
inline Passed passed_of(const Context& ctx, const LayerForward& io,
                        const std::vector<StateTensor>& spec) {
  const Received received = given_or_new(ctx, io.received, spec);
  Passed passed{.filled = received.filled};
  TensorView* const members[] = {&passed.halo, &passed.state, &passed.transitions};
  for (size_t i = 0; i < spec.size(); ++i) *members[i] = received.tensors[i];
  return passed;
}

// Local work that needs nothing that is on its way. Called exactly once, between the beginning and
// the end of an exchange where there is one.
using Meanwhile = std::function<void()>;

}  // namespace sluice
