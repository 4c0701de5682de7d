// Held-out loss of a model.
#pragma once

#include <string>

#include "data/dataset.h"
#include "layers/model.h"
#include "parallel/communicator.h"

namespace sluice {

struct EvaluationResult {
  double loss = 0;           // mean over predicted tokens, in nats
  int64_t targets = 0;       // predicted tokens
  double bits_per_byte = 0;  // with a byte tokenizer, else 0: all bits over predicted bytes
};

// Collective. Rows are dealt to ranks micro-batch by micro-batch, and losses summed in the order of
// the rows: the result does not depend on the number of ranks. `max_rows` 0: all.
EvaluationResult evaluate(const Context& ctx, const Model& model, TokenStore& store,
                          Communicator& group, int64_t seq_len, int64_t micro_batch,
                          int64_t max_rows = 0);

}  // namespace sluice
