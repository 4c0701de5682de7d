// Sums a span of a flat arena of gradients over a group while the backward still runs, and gathers
// the values that its ranks have updated.
//
// The span is cut into buckets from its end: the backward finishes the last parameters first. A
// bucket's reduction starts when all of it is final and all buckets before it have started, so that
// every rank starts them in the same order. Every bucket is cut into equal shards, one a rank, at
// multiples of a block: so what is computed block by block does not depend on the number of ranks.
//
//   reducer.begin(flat);
//   ... a branch's backward is done: reducer.ready(begin, end) ...
//   reducer.finish(stream);   // what the stream does from now on finds the group's sum in flat
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "parallel/communicator.h"

namespace sluice {

struct GradientBuckets {
  Slice span = {};  // of the arena; a multiple of block * ranks of the group
  int64_t block = 1;
  DType dtype = DType::f32;  // or f64
  int64_t bucket_bytes = int64_t{25} << 20;
};

// Buckets of a group of `ranks`, in the order of their reduction: the last one in the arena first.
std::vector<Slice> cut_buckets(const GradientBuckets& layout, int ranks);
// A rank's shard of every bucket, in the same order.
std::vector<Slice> cut_shards(const std::vector<Slice>& buckets, int ranks, int rank);

enum class Reduction : uint8_t {
  all_reduce,      // everyone holds the whole sum
  reduce_scatter,  // everyone holds the sum of its own shards, and anything elsewhere (ZeRO)
};

class GradientReducer {
 public:
  GradientReducer(Communicator& group, const GradientBuckets& layout,
                  Reduction reduction = Reduction::all_reduce);

  const std::vector<Slice>& buckets() const { return buckets_; }
  const std::vector<Slice>& shards() const { return shards_; }

  // `flat` is the whole arena; the span of it is in use until finish(). With `packed` (elements of
  // all shards of this rank) the sums go there, in the order of the arena.
  void begin(const TensorView& flat, const TensorView& packed = {});
  // Elements [begin, end) will not change any more. Every element of the span is reported exactly
  // once a step, also those of parameters that got no gradient and the padding.
  void ready(int64_t begin, int64_t end);
  // On the CPU it waits; on a GPU the stream does. Throws if elements were never reported.
  void finish(const Stream& stream = {});

  // The other way round: everyone gets everyone's shards of a bucket of `flat`.
  Event gather(size_t bucket, const TensorView& flat) const;

 private:
  void report(int64_t begin, int64_t end);
  void start_bucket(size_t bucket);

  Communicator& group_;
  GradientBuckets layout_;
  Reduction reduction_;
  std::vector<Slice> buckets_;
  std::vector<Slice> shards_;
  TensorView flat_;
  TensorView packed_;
  std::map<int64_t, int64_t> reported_;  // disjoint ranges, begin to end
  std::vector<int64_t> missing_;         // elements not yet reported, per bucket
  std::vector<Event> in_flight_;         // per bucket that has started
};

}  // namespace sluice
