#include "parallel/gradient_reducer.h"

#include <algorithm>
#include <iterator>

#include "kernels/elementwise/elementwise.h"

namespace sluice {
namespace {

TensorView part_of(const TensorView& flat, const Slice& elements) {
  return flat.columns(elements.begin, {elements.size()});
}

}  // namespace

std::vector<Slice> cut_buckets(const GradientBuckets& layout, int ranks) {
  SLUICE_CHECK(layout.dtype == DType::f32 || layout.dtype == DType::f64,
               "gradients are f32 or f64, got ", name_of(layout.dtype));
  SLUICE_CHECK(layout.bucket_bytes >= 1, "a bucket of ", layout.bucket_bytes, " bytes");
  const int64_t unit = layout.block * ranks;
  const Slice& span = layout.span;
  SLUICE_CHECK(layout.block >= 1 && span.begin >= 0 && span.size() >= 0 && span.size() % unit == 0,
               "elements [", span.begin, ", ", span.end, ") do not cut into blocks of ",
               layout.block, " for ", ranks, " ranks");
  const int64_t asked = layout.bucket_bytes / int64_t(size_of(layout.dtype));
  const int64_t elements = std::max(unit, asked / unit * unit);
  std::vector<Slice> buckets;
  for (int64_t end = span.end; end > span.begin; end -= elements)
    buckets.push_back({std::max(span.begin, end - elements), end});
  return buckets;
}

std::vector<Slice> cut_shards(const std::vector<Slice>& buckets, int ranks, int rank) {
  std::vector<Slice> shards;
  for (const Slice& bucket : buckets) {
    const Slice part = slice_of(bucket.size(), ranks, rank);
    shards.push_back({bucket.begin + part.begin, bucket.begin + part.end});
  }
  return shards;
}

int64_t staged_elements(const GradientBuckets& layout, int ranks) {
  const std::vector<Slice> buckets = cut_buckets(layout, ranks);
  return ranks == 1 || buckets.empty() ? 0 : buckets.front().size();  // the last one is smaller
}

GradientReducer::GradientReducer(Communicator& group, const GradientBuckets& layout,
                                 Reduction reduction, const TensorView& staging)
    : group_(group),
      layout_(layout),
      reduction_(reduction),
      buckets_(cut_buckets(layout, group.size())),
      shards_(cut_shards(buckets_, group.size(), group.rank())),
      staging_(staging) {
  const int64_t staged = staged_elements(layout, group.size());
  SLUICE_CHECK(!staging || (staging.dims == Dims{staged} && staging.dtype == layout.dtype),
               "the memory of sums is (", staged, ") ", name_of(layout.dtype), ", got ",
               to_string(staging.dims), " ", name_of(staging.dtype));
}

void GradientReducer::begin(const Context& ctx, const TensorView& flat, const TensorView& packed) {
  SLUICE_CHECK(!flat_, "begin() before the last step's finish()");
  SLUICE_CHECK(
      flat.dims.rank == 1 && flat.numel() >= layout_.span.end && flat.dtype == layout_.dtype,
      "the gradient arena is (", layout_.span.end, " or more) ", name_of(layout_.dtype), ", got ",
      to_string(flat.dims), " ", name_of(flat.dtype));
  const int64_t own = layout_.span.size() / group_.size();
  SLUICE_CHECK(!packed || (reduction_ == Reduction::reduce_scatter && packed.numel() == own &&
                           packed.dims.rank == 1 && packed.dtype == layout_.dtype),
               "packed shards are (", own, ") ", name_of(layout_.dtype), ", got ",
               to_string(packed.dims), " ", name_of(packed.dtype));
  ctx_ = ctx;
  flat_ = flat;
  packed_ = packed;
  num_started_ = 0;
  exchanging_.reset();
  reported_.clear();
  in_flight_.clear();
  missing_.clear();
  for (const Slice& bucket : buckets_) missing_.push_back(bucket.size());
}

void GradientReducer::ready(int64_t begin, int64_t end) {
  SLUICE_CHECK(bool(flat_), "ready() before begin()");
  const Slice& span = layout_.span;
  SLUICE_CHECK(begin >= span.begin && begin <= end && end <= span.end, "gradients [", begin, ", ",
               end, ") of [", span.begin, ", ", span.end, ")");
  if (begin == end) return;
  report(begin, end);
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const int64_t overlap = std::min(end, buckets_[i].end) - std::max(begin, buckets_[i].begin);
    missing_[i] -= std::max<int64_t>(0, overlap);
  }
  while (num_started_ < buckets_.size() && missing_[num_started_] == 0)
    start_bucket(num_started_++);
}

// Adds a range to the disjoint ones, joined with its neighbours.
void GradientReducer::report(int64_t begin, int64_t end) {
  const auto next = reported_.lower_bound(begin);
  const bool overlaps_next = next != reported_.end() && next->first < end;
  const bool overlaps_previous = next != reported_.begin() && std::prev(next)->second > begin;
  SLUICE_CHECK(!overlaps_next && !overlaps_previous, "gradients [", begin, ", ", end,
               ") or some of them were reported before");
  if (next != reported_.end() && next->first == end) {
    end = next->second;
    reported_.erase(next);
  }
  const auto after = reported_.lower_bound(begin);
  if (after != reported_.begin() && std::prev(after)->second == begin) {
    std::prev(after)->second = end;
  } else {
    reported_.emplace(begin, end);
  }
}

void GradientReducer::start_bucket(size_t bucket) {
  const TensorView whole = part_of(flat_, buckets_[bucket]);
  if (staging_ && group_.size() > 1) {
    sum_exchanged();  // of the bucket before, whose memory this one takes
    const std::vector<int64_t> counts(group_.size(), shards_[bucket].size());
    exchanged_ = group_.all_to_all_v(whole, counts, part_of(staging_, {0, whole.numel()}), counts);
    exchanging_ = bucket;
  } else if (reduction_ == Reduction::all_reduce) {
    in_flight_.push_back(group_.all_reduce(whole, ReduceOp::sum));
  } else {
    in_flight_.push_back(group_.reduce_scatter(whole, own_sum(bucket), ReduceOp::sum));
  }
}

// Where this rank's shard of a bucket's sum goes.
TensorView GradientReducer::own_sum(size_t bucket) const {
  const Slice& own = shards_[bucket];
  if (!packed_) return part_of(flat_, own);
  // Before it is packed this rank's share of everything below.
  const int64_t begin = (buckets_[bucket].begin - layout_.span.begin) / group_.size();
  return part_of(packed_, {begin, begin + own.size()});
}

void GradientReducer::sum_exchanged() {
  if (!exchanging_) return;
  const TensorView sum = own_sum(*exchanging_);
  const TensorView whole = part_of(flat_, buckets_[*exchanging_]);
  exchanging_.reset();
  const int64_t ranks = group_.size();
  exchanged_.order(ctx_.stream);
  tree_sum(ctx_, part_of(staging_, {0, whole.numel()}).reshape({ranks, sum.numel()}), sum);
  if (reduction_ == Reduction::all_reduce) in_flight_.push_back(group_.all_gather(sum, whole));
}

void GradientReducer::finish() {
  SLUICE_CHECK(bool(flat_), "finish() before begin()");
  const Slice& span = layout_.span;
  int64_t covered = span.begin;  // end of the reported prefix
  if (!reported_.empty() && reported_.begin()->first == covered)
    covered = reported_.begin()->second;
  SLUICE_CHECK(covered == span.end, "the gradient at element ", covered, " of [", span.begin, ", ",
               span.end, ") was never reported as ready");
  sum_exchanged();
  flat_ = {};
  packed_ = {};
  for (const Event& event : in_flight_) event.order(ctx_.stream);
  in_flight_.clear();
}

Event GradientReducer::gather(size_t bucket, const TensorView& flat) const {
  return group_.all_gather(part_of(flat, shards_[bucket]), part_of(flat, buckets_[bucket]));
}

}  // namespace sluice
