// A tiny run: token stores and a configuration whose step takes milliseconds.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "data/token_store.h"
#include "data/tokenizer.h"
#include "kernels/core/rng.h"
#include "tests/support/temp_folder.h"
#include "trainer/config.h"

namespace sluice::test {

// Documents with something to learn: a word and its echo.
inline void write_tiny_store(const std::string& path, uint64_t seed, int64_t num_documents) {
  const ByteTokenizer tokenizer;
  TokenStoreHeader header;
  header.vocab_size = tokenizer.vocab_size();
  header.tokenizer = tokenizer.name();
  header.tokenizer_hash = tokenizer.hash();
  header.end_of_document = tokenizer.end_of_document();
  TokenStoreWriter writer(header);
  for (int64_t d = 0; d < num_documents; ++d) {
    const RngKey key{.seed = seed, .stream = uint64_t(d)};
    std::vector<int32_t> ids;
    const int64_t length = 3 + int64_t(random_below(key, 0, 40));
    for (int64_t i = 0; i < length; ++i)
      ids.push_back(97 + int32_t(random_below(key, 1 + i % 7, 6)));
    writer.add_document(ids);
  }
  writer.finish(path);
}

struct TinyRun {
  explicit TinyRun(const std::string& pattern = "ME*-") {
    write_tiny_store(folder.path() + "/train.h5", 1, 400);
    write_tiny_store(folder.path() + "/valid.h5", 2, 30);
    config = parse_config("tiny", fmt::format(R"(
name: tiny
seed: 7
model:
  d_model: 16
  vocab_size: 257
  stack: {{pattern: "{}"}}
  mamba2: {{head_dim: 8, state_dim: 4, chunk: 8}}
  mamba: {{state_dim: 4}}
  attention: {{heads: 2}}
  mlp: {{hidden: 24}}
  moe: {{experts: 4, top_k: 2, hidden: 12}}
data: {{train: {}/train.h5, valid: {}/valid.h5}}
train: {{steps: 12, seq_len: 24, global_batch: 8, micro_batch: 2, threads: 1}}
optimizer: {{lr: 0.01}}
schedule: {{warmup: 4}}
checkpoint: {{every: 0, keep: 100}}
)",
                                              pattern, folder.path(), folder.path()));
  }
  TempFolder folder;
  Config config;
};

}  // namespace sluice::test
