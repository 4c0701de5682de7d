#include "parallel/gradient_reducer.h"

#include <algorithm>
#include <iterator>

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

GradientReducer::GradientReducer(Communicator& group, const GradientBuckets& layout,
                                 Reduction reduction)
    : group_(group),
      layout_(layout),
      reduction_(reduction),
      buckets_(cut_buckets(layout, group.size())),
      shards_(cut_shards(buckets_, group.size(), group.rank())) {}

void GradientReducer::begin(const TensorView& flat, const TensorView& packed) {
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
  flat_ = flat;
  packed_ = packed;
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
  while (in_flight_.size() < buckets_.size() && missing_[in_flight_.size()] == 0)
    start_bucket(in_flight_.size());
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
  if (reduction_ == Reduction::all_reduce) {
    in_flight_.push_back(group_.all_reduce(whole, ReduceOp::sum));
    return;
  }
  const Slice& own = shards_[bucket];
  // Before it is packed this rank's share of everything below.
  const int64_t packed_begin = (buckets_[bucket].begin - layout_.span.begin) / group_.size();
  const TensorView part =
      packed_ ? part_of(packed_, {packed_begin, packed_begin + own.size()}) : part_of(flat_, own);
  in_flight_.push_back(group_.reduce_scatter(whole, part, ReduceOp::sum));
}

void GradientReducer::finish(const Stream& stream) {
  SLUICE_CHECK(bool(flat_), "finish() before begin()");
  const Slice& span = layout_.span;
  int64_t covered = span.begin;  // end of the reported prefix
  if (!reported_.empty() && reported_.begin()->first == covered)
    covered = reported_.begin()->second;
  SLUICE_CHECK(covered == span.end, "the gradient at element ", covered, " of [", span.begin, ", ",
               span.end, ") was never reported as ready");
  flat_ = {};
  packed_ = {};
  for (const Event& event : in_flight_) event.order(stream);
  in_flight_.clear();
}

Event GradientReducer::gather(size_t bucket, const TensorView& flat) const {
  return group_.all_gather(part_of(flat, shards_[bucket]), part_of(flat, buckets_[bucket]));
}

}  // namespace sluice
