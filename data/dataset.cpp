#include "data/dataset.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"

namespace sluice {

// ---- DocumentOrder ----

DocumentOrder::DocumentOrder(const TokenStore& store)
    : offsets_(store.doc_offsets()), documents_(size_t(store.num_documents())) {
  std::iota(documents_.begin(), documents_.end(), int64_t{0});
  lay_out();
}

DocumentOrder::DocumentOrder(const TokenStore& store, uint64_t seed, int64_t store_index,
                             int64_t epoch)
    : offsets_(store.doc_offsets()), documents_(size_t(store.num_documents())) {
  std::iota(documents_.begin(), documents_.end(), int64_t{0});
  // A key of its own for every (seed, store, epoch), then Fisher and Yates' shuffle under it.
  const RngKey epochs{.seed = seed, .stream = hash_name("data.order") + uint64_t(store_index)};
  const auto bits = random_bits(epochs, uint64_t(epoch));
  const RngKey key{.seed = uint64_t{bits[0]} << 32 | bits[1],
                   .stream = uint64_t{bits[2]} << 32 | bits[3]};
  for (size_t i = documents_.size(); i-- > 1;)
    std::swap(documents_[i], documents_[random_below(key, i, i + 1)]);
  lay_out();
}

void DocumentOrder::lay_out() {
  starts_.reserve(documents_.size() + 1);
  starts_.push_back(0);
  for (const int64_t document : documents_) {
    const size_t d = size_t(document);
    starts_.push_back(starts_.back() + offsets_[d + 1] - offsets_[d]);
  }
}

void DocumentOrder::segments(int64_t begin, int64_t count, std::vector<Segment>& out) const {
  SLUICE_CHECK(begin >= 0 && count >= 0 && begin <= starts_.back() - count, "positions [", begin,
               ", ", begin + count, ") of an epoch of ", starts_.back());
  size_t place = size_t(std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin());
  while (count > 0) {
    // Documents at places 0, 1, ... end at starts_[1], starts_[2], ...
    const int64_t taken = std::min(count, starts_[place] - begin);
    const int64_t skipped = begin - starts_[place - 1];
    out.push_back({.token = offsets_[size_t(documents_[place - 1])] + skipped,
                   .count = taken,
                   .ends = begin + taken == starts_[place],
                   .before = skipped});
    begin += taken;
    count -= taken;
    place += 1;
  }
}

// ---- rows ----

namespace {

// Tokens, targets and document starts of the first `seq_len` of the segments' tokens. The segments
// hold one token more, the last one's target, unless the stream ends before: what is missing is
// filled up with `padding`, as one more document without targets. The first document begins `seen`
// tokens before the row, if it is that long.
Batch::Row make_row(TokenStore& store, const std::vector<Segment>& segments, int64_t seq_len,
                    int32_t padding, int64_t seen = 0) {
  Batch::Row row;
  std::vector<int32_t> tokens(size_t(seq_len) + 1, padding);
  row.targets.assign(size_t(seq_len), -1);
  row.doc_begin.assign(size_t(seq_len), 0);
  int64_t at = 0;
  for (const Segment& segment : segments) {
    store.read(segment.token, segment.count, tokens.data() + at);
    const int64_t end = at + segment.count;
    const int64_t visible_end = std::min(end, seq_len);
    const int64_t begin = at == 0 ? -std::min(seen, segment.before) : at;
    std::fill(row.doc_begin.begin() + at, row.doc_begin.begin() + visible_end, int32_t(begin));
    // The segment's last token has no successor in it.
    for (int64_t t = at; t + 1 < end; ++t) row.targets[size_t(t)] = tokens[size_t(t) + 1];
    at = end;
  }
  if (at < seq_len) std::fill(row.doc_begin.begin() + at, row.doc_begin.end(), int32_t(at));
  tokens.pop_back();
  row.tokens = std::move(tokens);
  return row;
}

}  // namespace

// ---- PackedStream ----

const DocumentOrder& PackedStream::order(int64_t epoch) {
  auto found = orders_.find(epoch);
  if (found == orders_.end()) {
    // Rows are asked in order, so the epoch farthest from this one is not needed again soon.
    if (orders_.size() >= 2) {
      const bool first_is_farther =
          epoch - orders_.begin()->first > orders_.rbegin()->first - epoch;
      orders_.erase(first_is_farther ? orders_.begin() : std::prev(orders_.end()));
    }
    found = orders_.emplace(epoch, DocumentOrder(*store_, seed_, store_index_, epoch)).first;
  }
  return found->second;
}

std::vector<Segment> PackedStream::segments(int64_t begin, int64_t count) {
  SLUICE_CHECK(begin >= 0, "stream position ", begin);
  std::vector<Segment> found;
  const int64_t epoch_tokens = store_->num_tokens();
  while (count > 0) {
    const int64_t skip = begin % epoch_tokens;
    const int64_t taken = std::min(count, epoch_tokens - skip);
    order(begin / epoch_tokens).segments(skip, taken, found);
    begin += taken;
    count -= taken;
  }
  return found;
}

Batch::Row PackedStream::row(int64_t begin, int64_t seq_len, int64_t seen) {
  return make_row(*store_, segments(begin, seq_len + 1), seq_len, 0, seen);
}

int64_t PackedStream::count_targets(int64_t begin, int64_t seq_len) {
  int64_t count = seq_len;
  for (const Segment& segment : segments(begin, seq_len)) count -= segment.ends ? 1 : 0;
  return count;
}

// ---- EvalRows ----

EvalRows::EvalRows(TokenStore& store, int64_t seq_len)
    : store_(&store), order_(store), seq_len_(seq_len) {
  SLUICE_CHECK(seq_len > 0, "rows of ", seq_len, " tokens");
  // The very last token is an end mark: no input is needed for it to predict.
  num_rows_ = std::max<int64_t>(1, (store.num_tokens() - 1 + seq_len - 1) / seq_len);
}

Batch::Row EvalRows::row(int64_t row) {
  const int64_t begin = std::min(row * seq_len_, store_->num_tokens());
  const int64_t count = std::min(seq_len_ + 1, store_->num_tokens() - begin);
  std::vector<Segment> segments;
  if (count > 0) order_.segments(begin, count, segments);
  return make_row(*store_, segments, seq_len_, store_->header().end_of_document);
}

Batch EvalRows::batch(int64_t first_row, int64_t num_rows, SequenceShard shard, int64_t end_row) {
  Batch batch(first_row, num_rows, seq_len_, shard);
  for (int64_t i = 0; i < num_rows; ++i)
    batch.set_row(i, row(first_row + i < end_row ? first_row + i : num_rows_));
  return batch;
}

int64_t EvalRows::num_targets() const { return store_->num_tokens() - store_->num_documents(); }

int64_t EvalRows::num_text_targets() const {
  const std::span<const int64_t> offsets = store_->doc_offsets();
  int64_t end_targets = 0;
  for (size_t d = 1; d < offsets.size(); ++d)
    end_targets += offsets[d] - offsets[d - 1] > 1 ? 1 : 0;
  return num_targets() - end_targets;
}

}  // namespace sluice
