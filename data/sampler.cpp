#include "data/sampler.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"

namespace sluice {

// ---- StorePicks ----

StorePicks::StorePicks(std::vector<double> weights, uint64_t seed)
    : seed_(seed), counts_(weights.size(), 0), marks_{counts_} {
  double total = 0;
  for (const double weight : weights) {
    if (!(weight > 0) || !std::isfinite(weight))
      throw UsageError(concat("data weights must be positive numbers, got ", weight));
    total += weight;
  }
  double sum = 0;
  for (const double weight : weights) cumulative_.push_back((sum += weight) / total);
  cumulative_.back() = 1;
}

int64_t StorePicks::draw(int64_t row) const {
  if (cumulative_.size() == 1) return 0;
  const double u =
      random_uniform({.seed = seed_, .stream = hash_name("data.store")}, uint64_t(row));
  return std::upper_bound(cumulative_.begin(), cumulative_.end() - 1, u) - cumulative_.begin();
}

void StorePicks::advance() {
  counts_[size_t(draw(next_row_))] += 1;
  next_row_ += 1;
  if (next_row_ == int64_t(marks_.size()) * kMarkEvery) marks_.push_back(counts_);
}

StorePicks::Pick StorePicks::pick(int64_t row) {
  SLUICE_CHECK(row >= 0, "row ", row);
  if (cumulative_.size() == 1) return {.store = 0, .row = row};
  // Go back to a mark, or ahead to one, where that saves replaying.
  const int64_t mark = std::min(row / kMarkEvery, int64_t(marks_.size()) - 1);
  if (row < next_row_ || mark * kMarkEvery > next_row_) {
    next_row_ = mark * kMarkEvery;
    counts_ = marks_[size_t(mark)];
  }
  while (next_row_ < row) advance();
  const int64_t store = draw(row);
  return {.store = store, .row = counts_[size_t(store)]};
}

// ---- Sampler ----

namespace {

std::vector<double> weights_of(const std::vector<SamplerSource>& sources) {
  if (sources.empty()) throw UsageError("no token stores to train on; set data.train");
  std::vector<double> weights;
  for (const SamplerSource& source : sources) weights.push_back(source.weight);
  return weights;
}

}  // namespace

Sampler::Sampler(std::vector<SamplerSource> sources, const SamplerOptions& options)
    : sources_(std::move(sources)), options_(options), picks_(weights_of(sources_), options.seed) {
  SLUICE_CHECK(options.seq_len > 0 && options.global_batch > 0, "rows of ", options.seq_len,
               " tokens, ", options.global_batch, " a step");
  const TokenStoreHeader& first = sources_.front().store->header();
  for (const SamplerSource& source : sources_) {
    const TokenStoreHeader& header = source.store->header();
    if (header.tokenizer_hash != first.tokenizer_hash || header.vocab_size != first.vocab_size) {
      throw UsageError(
          concat("stores of one run need one tokenizer: ", sources_.front().store->path(), " has ",
                 first.tokenizer, " (", first.tokenizer_hash, "), ", source.store->path(), " has ",
                 header.tokenizer, " (", header.tokenizer_hash, ")"));
    }
    streams_.emplace_back(*source.store, options.seed, int64_t(streams_.size()));
  }
}

int64_t Sampler::row_of_step(int64_t step) const {
  SLUICE_CHECK(step >= options_.first_step, "step ", step, " lies before the run's first, ",
               options_.first_step);
  return options_.first_step_row + (step - options_.first_step) * options_.global_batch;
}

Batch Sampler::batch(int64_t step, int64_t first_row, int64_t num_rows, SequenceShard shard) {
  SLUICE_CHECK(first_row >= 0 && first_row + num_rows <= options_.global_batch, "rows [", first_row,
               ", ", first_row + num_rows, ") of a global batch of ", options_.global_batch);
  const std::lock_guard<std::mutex> lock(mutex_);
  Batch batch(first_row, num_rows, options_.seq_len, shard, options_.global_batch);
  for (int64_t i = 0; i < num_rows; ++i) {
    const StorePicks::Pick pick = picks_.pick(row_of_step(step) + first_row + i);
    batch.set_row(i, streams_[size_t(pick.store)].row(pick.row, options_.seq_len));
  }
  return batch;
}

int64_t Sampler::count_targets(int64_t step) {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t count = 0;
  for (int64_t i = 0; i < options_.global_batch; ++i) {
    const StorePicks::Pick pick = picks_.pick(row_of_step(step) + i);
    count += streams_[size_t(pick.store)].count_targets(pick.row, options_.seq_len);
  }
  return count;
}

}  // namespace sluice
