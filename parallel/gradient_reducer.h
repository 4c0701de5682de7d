// Sums a flat arena of gradients over a group while the backward still runs.
//
// The arena is cut into buckets at parameter starts, from its end: the backward finishes the last
// parameters first. A bucket's reduction starts when all of it is final and all buckets before it
// have started, so that every rank starts them in the same order.
//
//   reducer.begin(flat);
//   ... a branch's backward is done: reducer.ready(begin, end) ...
//   reducer.finish();   // flat holds the sum over the group
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "parallel/communicator.h"

namespace sluice {

struct GradientBuckets {
  std::vector<int64_t> starts;  // first element of every parameter, ascending from 0
  int64_t elements = 0;         // of the whole arena, padding included
  DType dtype = DType::f32;     // or f64
  int64_t bucket_bytes = int64_t{25} << 20;
};

enum class Reduction : uint8_t {
  all_reduce,      // everyone holds the whole sum
  reduce_scatter,  // everyone holds the sum of owned(), and anything elsewhere (ZeRO)
};

class GradientReducer {
 public:
  GradientReducer(Communicator& group, const GradientBuckets& layout,
                  Reduction reduction = Reduction::all_reduce);

  // In the order of their reduction: the last one in the arena first.
  const std::vector<Slice>& buckets() const { return buckets_; }
  // This rank's slice of every bucket, in the same order.
  std::vector<Slice> owned() const;

  // `flat` (elements) is in use until finish().
  void begin(const TensorView& flat);
  // Elements [begin, end) will not change any more. Every element is reported exactly once a step,
  // also those of parameters that got no gradient and the padding.
  void ready(int64_t begin, int64_t end);
  // Waits. Throws if elements were never reported.
  void finish();

 private:
  void report(int64_t begin, int64_t end);
  void start_bucket(const Slice& bucket);

  Communicator& group_;
  GradientBuckets layout_;
  Reduction reduction_;
  std::vector<Slice> buckets_;
  TensorView flat_;
  std::map<int64_t, int64_t> reported_;  // disjoint ranges, begin to end
  std::vector<int64_t> missing_;         // elements not yet reported, per bucket
  std::vector<Event> in_flight_;         // per bucket that has started
};

}  // namespace sluice
