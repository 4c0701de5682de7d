#include "trainer/gradient_norm.h"

#include <algorithm>

#include "kernels/core/host_copy.h"
#include "kernels/grad_norm/grad_norm.h"

namespace sluice {

namespace {

// A rank's shards, in the order of the arena.
std::vector<Slice> ascending_shards(const GradientBuckets& buckets, int ranks, int rank) {
  std::vector<Slice> shards = cut_shards(cut_buckets(buckets, ranks), ranks, rank);
  std::reverse(shards.begin(), shards.end());
  return shards;
}

}  // namespace

GradientNorm::GradientNorm(const ShardedArena& arena, const Mesh& mesh, Device device,
                           bool allocate)
    : experts_(mesh.axis(Axis::ep)) {
  int64_t sums = 0;
  for (const ShardedArena::Group& group : arena.groups()) {
    sums += group.which == ReduceGroup::dense ? 1 : experts_.size();
    this->allocate(blocks_.emplace_back(), group, device, allocate);
  }
  if (allocate) storage_ = Buffer(sums * sizeof(double), device);
  squares_ = TensorView(storage_.data(), {sums}, DType::f64, device);
}

void GradientNorm::allocate(Blocks& blocks, const ShardedArena::Group& group, Device device,
                            bool allocate) {
  const int ranks = group.ranks->size();
  const int64_t count = group.buckets.span.size() / kNormBlock;
  const Slice own = slice_of(count, ranks, group.ranks->rank());
  blocks.which = group.which;
  blocks.ranks = group.ranks;
  blocks.shards = ascending_shards(group.buckets, ranks, group.ranks->rank());
  if (allocate) blocks.storage = Buffer(count * (sizeof(double) + sizeof(int64_t)), device);
  char* const data = static_cast<char*>(blocks.storage.data());
  blocks.all = TensorView(data, {count}, DType::f64, device);
  blocks.own = blocks.all.columns(own.begin, {own.size()});
  blocks.places = TensorView(data == nullptr ? nullptr : data + count * sizeof(double), {count},
                             DType::i64, device);
  if (!allocate) return;
  const OwnedStream stream(device);
  const HostCopy places(blocks.places, stream, HostCopy::Content::unread);
  int64_t place = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    for (const Slice& shard : ascending_shards(group.buckets, ranks, rank)) {
      const int64_t first = (shard.begin - group.buckets.span.begin) / kNormBlock;
      for (int64_t block = first; block < first + shard.size() / kNormBlock; ++block)
        places.view().as<int64_t>()[block] = place++;
    }
  }
  places.write_back();
}

void GradientNorm::sum_group(const Context& ctx, const HeldTensor& gradients, const Blocks& blocks,
                             const TensorView& sum) {
  int64_t done = 0;
  for (const Slice& shard : blocks.shards) {
    const int64_t count = shard.size() / kNormBlock;
    block_squares(ctx, {.x = gradients.at(shard), .sums = blocks.own.columns(done, {count})});
    done += count;
  }
  blocks.ranks->all_gather(blocks.own, blocks.all).order(ctx.stream);
  ordered_sum(ctx, {.values = blocks.all, .places = blocks.places, .sum = sum});
}

ConstTensorView GradientNorm::squares(const Context& ctx, const HeldTensor& gradients) {
  int64_t next = 0;
  for (const Blocks& blocks : blocks_) {
    if (blocks.which == ReduceGroup::dense) {  // the same parameters on all ranks
      sum_group(ctx, gradients, blocks, squares_.columns(next++, {1}));
      continue;
    }
    const TensorView of_ranks = squares_.columns(next, {experts_.size()});
    const TensorView own = of_ranks.columns(experts_.rank(), {1});
    sum_group(ctx, gradients, blocks, own);
    experts_.all_gather(own, of_ranks).order(ctx.stream);
    next += experts_.size();
  }
  return squares_;
}

}  // namespace sluice
