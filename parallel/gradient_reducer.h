// Sums a span of a flat arena of gradients over a group while the backward still runs, and gathers
// the values that its ranks have updated.
//
// The span is cut into buckets from its end: the backward finishes the last parameters first. A
// bucket's reduction starts when all of it is final and all buckets before it have started, so that
// every rank starts them in the same order. Every bucket is cut into equal shards, one a rank, at
// multiples of a block: so what is computed block by block does not depend on the number of ranks.
//
//   reducer.begin(ctx, flat);
//   ... a branch's backward is done: reducer.ready(begin, end) ...
//   reducer.finish();   // what ctx's stream does from now on finds the group's sum in flat
//
// The sum is the group's, or, with memory to do it in, the halving tree's whatever the group is:
// ranks exchange a bucket's shards, and each adds up its own. That is enqueued when the next bucket
// starts, so that the stream rarely waits for a bucket on its way.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "kernels/core/context.h"
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

// What a reducer needs to take sums in the order of the tree: elements of its largest bucket. None
// for one rank.
int64_t staged_elements(const GradientBuckets& layout, int ranks);

enum class Reduction : uint8_t {
  all_reduce,      // everyone holds the whole sum
  reduce_scatter,  // everyone holds the sum of its own shards, and anything elsewhere (ZeRO)
};

class GradientReducer {
 public:
  // `staging`, optional: (staged_elements(layout, ranks)), for sums in the order of the tree.
  GradientReducer(Communicator& group, const GradientBuckets& layout,
                  Reduction reduction = Reduction::all_reduce, const TensorView& staging = {});

  const std::vector<Slice>& buckets() const { return buckets_; }
  const std::vector<Slice>& shards() const { return shards_; }

  // `flat` is the whole arena; the span of it is in use until finish(). With `packed` (elements of
  // all shards of this rank) the sums go there, in the order of the arena.
  void begin(const Context& ctx, const TensorView& flat, const TensorView& packed = {});
  // Elements [begin, end) will not change any more. Every element of the span is reported exactly
  // once a step, also those of parameters that got no gradient and the padding.
  void ready(int64_t begin, int64_t end);
  // On the CPU it waits; on a GPU the stream does. Throws if elements were never reported.
  void finish();

  // The other way round: everyone gets everyone's shards of a bucket of `flat`.
  Event gather(size_t bucket, const TensorView& flat) const;

 private:
  void report(int64_t begin, int64_t end);
  void start_bucket(size_t bucket);
  void sum_exchanged();
  TensorView own_sum(size_t bucket) const;

  Communicator& group_;
  GradientBuckets layout_;
  Reduction reduction_;
  std::vector<Slice> buckets_;
  std::vector<Slice> shards_;
  TensorView staging_;
  Context ctx_;
  TensorView flat_;
  TensorView packed_;
  std::map<int64_t, int64_t> reported_;  // disjoint ranges, begin to end
  std::vector<int64_t> missing_;         // elements not yet reported, per bucket
  size_t num_started_ = 0;               // buckets
  std::vector<Event> in_flight_;         // what finish() has to wait for
  std::optional<size_t> exchanging_;     // the bucket whose shards are on their way to staging_
  Event exchanged_;                      // its end
};

}  // namespace sluice
