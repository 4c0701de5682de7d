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
  if (options.carry_state) deal_stores();
}

int64_t Sampler::row_of_step(int64_t step) const {
  SLUICE_CHECK(step >= options_.first_step, "step ", step, " lies before the run's first, ",
               options_.first_step);
  return options_.first_step_row + (step - options_.first_step) * options_.global_batch;
}

Sampler::Place Sampler::place_of(int64_t step, int64_t index) {
  const int64_t row = row_of_step(step) + index;
  if (!options_.carry_state) {
    const StorePicks::Pick pick = picks_.pick(row);
    return {.store = pick.store, .begin = pick.row * options_.seq_len, .seen = 0};
  }
  Place place = starts_[size_t(index)];
  place.seen = row / options_.global_batch * options_.seq_len;
  place.begin += place.seen;
  return place;
}

// Rows [from, to) of the batch read a store: a share of all rows as large as the store's weight.
void Sampler::deal_stores() {
  SLUICE_CHECK(options_.first_step_row % options_.global_batch == 0, "rows of ",
               options_.global_batch, " streams cannot go on at row ", options_.first_step_row);
  double total = 0;
  for (const SamplerSource& source : sources_) total += source.weight;
  double sum = 0;
  for (size_t store = 0; store < sources_.size(); ++store) {
    const auto edge = [&] { return std::llround(sum / total * double(options_.global_batch)); };
    const int64_t from = edge();
    sum += sources_[store].weight;
    const int64_t rows = edge() - from;
    if (rows == 0) {
      throw UsageError(concat("data.carry_state gives every row of a step one store, and ",
                              sources_[store].store->path(), " is too light for one of ",
                              options_.global_batch,
                              " rows: raise train.global_batch or its weight"));
    }
    const int64_t tokens = sources_[store].store->num_tokens();
    for (int64_t row = 0; row < rows; ++row)
      starts_.push_back({.store = int64_t(store), .begin = row * (tokens / rows), .seen = 0});
  }
}

Batch Sampler::batch(int64_t step, int64_t first_row, int64_t num_rows, SequenceShard shard) {
  SLUICE_CHECK(first_row >= 0 && first_row + num_rows <= options_.global_batch, "rows [", first_row,
               ", ", first_row + num_rows, ") of a global batch of ", options_.global_batch);
  const std::lock_guard<std::mutex> lock(mutex_);
  Batch batch(first_row, num_rows, options_.seq_len, shard, options_.global_batch);
  for (int64_t i = 0; i < num_rows; ++i) {
    const Place place = place_of(step, first_row + i);
    batch.set_row(i, streams_[size_t(place.store)].row(place.begin, options_.seq_len, place.seen));
  }
  return batch;
}

int64_t Sampler::count_targets(int64_t step) {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t count = 0;
  for (int64_t i = 0; i < options_.global_batch; ++i) {
    const Place place = place_of(step, i);
    count += streams_[size_t(place.store)].count_targets(place.begin, options_.seq_len);
  }
  return count;
}

}  // namespace sluice
