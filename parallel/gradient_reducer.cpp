#include "parallel/gradient_reducer.h"

#include <algorithm>
#include <iterator>

namespace sluice {
namespace {

std::vector<Slice> cut_buckets(const GradientBuckets& layout) {
  const std::vector<int64_t>& starts = layout.starts;
  SLUICE_CHECK(layout.dtype == DType::f32 || layout.dtype == DType::f64,
               "gradients are f32 or f64, got ", name_of(layout.dtype));
  SLUICE_CHECK(layout.bucket_bytes >= 1, "a bucket of ", layout.bucket_bytes, " bytes");
  SLUICE_CHECK(starts.empty() ? layout.elements == 0
                              : starts.front() == 0 && starts.back() <= layout.elements,
               "parameters start at 0 and end within the arena's ", layout.elements, " elements");
  SLUICE_CHECK(std::is_sorted(starts.begin(), starts.end()), "parameter starts must ascend");
  const int64_t enough = layout.bucket_bytes / int64_t(size_of(layout.dtype));
  std::vector<Slice> buckets;
  int64_t end = layout.elements;
  for (auto start = starts.rbegin(); start != starts.rend(); ++start) {
    const bool full = end - *start >= enough || *start == 0;
    if (!full || *start == end) continue;
    buckets.push_back({*start, end});
    end = *start;
  }
  return buckets;
}

}  // namespace

GradientReducer::GradientReducer(Communicator& group, const GradientBuckets& layout,
                                 Reduction reduction)
    : group_(group), layout_(layout), reduction_(reduction), buckets_(cut_buckets(layout)) {}

std::vector<Slice> GradientReducer::owned() const {
  std::vector<Slice> owned;
  for (const Slice& bucket : buckets_) {
    const Slice part = slice_of(bucket.size(), group_.size(), group_.rank());
    owned.push_back({bucket.begin + part.begin, bucket.begin + part.end});
  }
  return owned;
}

void GradientReducer::begin(const TensorView& flat) {
  SLUICE_CHECK(!flat_, "begin() before the last step's finish()");
  SLUICE_CHECK(
      flat.dims.rank == 1 && flat.numel() == layout_.elements && flat.dtype == layout_.dtype,
      "the gradient arena is (", layout_.elements, ") ", name_of(layout_.dtype), ", got ",
      to_string(flat.dims), " ", name_of(flat.dtype));
  flat_ = flat;
  reported_.clear();
  in_flight_.clear();
  missing_.clear();
  for (const Slice& bucket : buckets_) missing_.push_back(bucket.size());
}

void GradientReducer::ready(int64_t begin, int64_t end) {
  SLUICE_CHECK(bool(flat_), "ready() before begin()");
  SLUICE_CHECK(begin >= 0 && begin <= end && end <= layout_.elements, "gradients [", begin, ", ",
               end, ") of ", layout_.elements);
  if (begin == end) return;
  report(begin, end);
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const int64_t overlap = std::min(end, buckets_[i].end) - std::max(begin, buckets_[i].begin);
    missing_[i] -= std::max<int64_t>(0, overlap);
  }
  while (in_flight_.size() < buckets_.size() && missing_[in_flight_.size()] == 0)
    start_bucket(buckets_[in_flight_.size()]);
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

void GradientReducer::start_bucket(const Slice& bucket) {
  const auto view = [&](const Slice& elements) {
    char* data = static_cast<char*>(flat_.data) + elements.begin * int64_t(size_of(flat_.dtype));
    return TensorView(data, {elements.size()}, flat_.dtype, flat_.device);
  };
  if (reduction_ == Reduction::all_reduce) {
    in_flight_.push_back(group_.all_reduce(view(bucket), ReduceOp::sum));
    return;
  }
  const Slice part = slice_of(bucket.size(), group_.size(), group_.rank());
  const Slice own{bucket.begin + part.begin, bucket.begin + part.end};
  in_flight_.push_back(group_.reduce_scatter(view(bucket), view(own), ReduceOp::sum));
}

void GradientReducer::finish() {
  SLUICE_CHECK(bool(flat_), "finish() before begin()");
  int64_t covered = 0;  // end of the reported prefix
  if (!reported_.empty() && reported_.begin()->first == 0) covered = reported_.begin()->second;
  SLUICE_CHECK(covered == layout_.elements, "the gradient at element ", covered, " of ",
               layout_.elements, " was never reported as ready");
  flat_ = {};
  for (const Event& event : in_flight_) event.wait();
  in_flight_.clear();
}

}  // namespace sluice
