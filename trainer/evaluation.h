// Held-out loss of a model.
#pragma once

#include <string>

#include "data/dataset.h"
#include "layers/model.h"
#include "parallel/mesh.h"

namespace sluice {

struct EvaluationResult {
  double loss = 0;           // mean over predicted tokens, in nats
  int64_t targets = 0;       // predicted tokens
  double bits_per_byte = 0;  // with a byte tokenizer, else 0: all bits over predicted bytes
};

struct EvaluationOptions {
  int64_t seq_len = 0;
  int64_t micro_batch = 1;  // rows of a forward pass
  int64_t max_rows = 0;     // 0: all
};

// Collective. Micro-batches are dealt to the dp ranks in turn, their tokens to the cp ranks, and
// losses are summed in the order of the rows: the result has the same bits for every number of dp
// ranks.
EvaluationResult evaluate(const Context& ctx, const Model& model, TokenStore& store,
                          const Mesh& mesh, const EvaluationOptions& options);

}  // namespace sluice
