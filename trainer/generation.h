// Sampling from a model token by token, in memory that does not grow with the text (but for
// attention's cache, allocated once).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "layers/model.h"

namespace sluice {

struct GenerationOptions {
  int64_t tokens = 256;    // to sample
  double temperature = 1;  // 0: the most likely token
  int64_t top_k = 0;       // sample among the k most likely; 0: all
  uint64_t seed = 1;
  int64_t vocab_size = 0;   // ids at and above it are never sampled: a model may have spare rows
  int32_t stop_token = -1;  // ends the text; -1: none
};

// Feeds the prompt (at least one token), then samples. `emit` sees each sampled token; it may
// return false to stop. Sampling is a pure function of (logits, seed, position), and on the host:
// of a model on a GPU the logits of every token come back.
void generate(const Model& model, const std::vector<int32_t>& prompt,
              const GenerationOptions& options, const std::function<bool(int32_t)>& emit,
              Stream stream = {});

// The choice among logits (V), by the n-th draw of the seed.
int32_t sample_token(const std::vector<float>& logits, const GenerationOptions& options, int64_t n);

}  // namespace sluice
