// The loss of given rows of tokens, their logits, and the loss's gradient under the names that the
// model's files use.
//
// A row is one document whatever ids it holds, with a target at every token but its last. Rows may
// differ in length; each is one forward pass. V vocabulary, T tokens of a row.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/model_source.h"

namespace sluice {

using TokenRows = std::vector<std::vector<int32_t>>;

// JSON, [[ids], [ids], ...], or a token store, of which each document is a row. Throws DataError
// for an id that is not below the vocabulary, and for an empty row.
TokenRows read_token_rows(const std::string& path, int64_t vocab_size);

struct ScoreRequest {
  bool logits = false;  // the rows must be of one length, else UsageError
  bool gradients = false;
};

struct Scores {
  double loss = 0;  // cross-entropy, mean over the targets of all rows
  int64_t rows = 0;
  int64_t tokens = 0;
  int64_t targets = 0;
  Buffer logits_storage;
  TensorView logits;  // (rows, T, V), if asked for
  Buffer gradients_storage;
  TensorView gradients;  // flat, as the store lays parameters out, if asked for
};

// Where the model is; the results are in host memory, logits and gradients in f32 (f64 of an f64
// model). Throws UsageError if no row has a target.
Scores score(const LoadedModel& loaded, const TokenRows& rows, const ScoreRequest& request,
             Stream stream = {});

// HDF5: the dataset "logits" (rows, T, V); a dataset for each tensor of the model's files, under
// its name and shape. Parameters that no gradient trains (a router's choice bias) are left out.
void write_logits(const std::string& path, const Scores& scores);
void write_gradients(const std::string& path, const LoadedModel& loaded, const Scores& scores);

}  // namespace sluice
