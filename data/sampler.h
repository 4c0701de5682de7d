// Which rows a step trains on: a pure function of (seed, step, index), whatever the number of
// ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "data/batch.h"
#include "data/dataset.h"
#include "data/token_store.h"

namespace sluice {

// Assigns every row of the run to a store, by weight, and numbers the rows of each store.
class StorePicks {
 public:
  StorePicks(std::vector<double> weights, uint64_t seed);

  struct Pick {
    int64_t store = 0;
    int64_t row = 0;  // rows of the run before this one that fell to the same store
  };
  // O(1) for rows asked in order; a jump back or ahead replays at most from the last mark.
  Pick pick(int64_t row);

 private:
  int64_t draw(int64_t row) const;
  void advance();

  static constexpr int64_t kMarkEvery = int64_t{1} << 12;
  std::vector<double> cumulative_;  // shares, last 1
  uint64_t seed_;
  int64_t next_row_ = 0;
  std::vector<int64_t> counts_;              // of each store in rows [0, next_row_)
  std::vector<std::vector<int64_t>> marks_;  // counts_ at multiples of kMarkEvery
};

struct SamplerSource {
  std::unique_ptr<TokenStore> store;
  double weight = 1;
};

struct SamplerOptions {
  int64_t seq_len = 0;
  int64_t global_batch = 0;  // rows of a step
  uint64_t seed = 0;
  // Row of the run at which step `first_step` starts. For a run resumed with another global_batch;
  // a fresh run starts at row 0 with step 0.
  int64_t first_step = 0;
  int64_t first_step_row = 0;
  // Row b of a step goes on where row b of the step before ended. Every row of the batch has a
  // stream of its own, which begins at an equal share of a store; stores are dealt to rows by
  // weight, once.
  bool carry_state = false;
};

// Row `index` of step `step` is row first_step_row + (step - first_step) * global_batch + index of
// the run. (With carry_state first_step_row is a multiple of global_batch.) Safe to call from
// several threads.
class Sampler {
 public:
  // Throws UsageError for no stores, weights that are not positive, or stores of different
  // tokenizers.
  Sampler(std::vector<SamplerSource> sources, const SamplerOptions& options);

  // Rows [first_row, first_row + num_rows) of the step's global batch.
  Batch batch(int64_t step, int64_t first_row, int64_t num_rows, SequenceShard shard = {});
  // Targets of the step's whole global batch, over all ranks. Reads no tokens.
  int64_t count_targets(int64_t step);

  const SamplerOptions& options() const { return options_; }
  int64_t row_of_step(int64_t step) const;
  const TokenStore& store(int64_t index) const { return *sources_[index].store; }
  int64_t num_stores() const { return int64_t(sources_.size()); }

 private:
  // Where a row lies in its store's stream.
  struct Place {
    int64_t store = 0;
    int64_t begin = 0;
    int64_t seen = 0;  // tokens before it whose state it goes on from
  };
  Place place_of(int64_t step, int64_t index);
  void deal_stores();

  std::vector<SamplerSource> sources_;
  SamplerOptions options_;
  std::vector<Place> starts_;  // of every row's stream, if rows go on from step to step
  std::mutex mutex_;
  StorePicks picks_;
  std::vector<PackedStream> streams_;
};

}  // namespace sluice
