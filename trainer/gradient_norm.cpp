#include "trainer/gradient_norm.h"

#include <algorithm>

#include "kernels/grad_norm/grad_norm.h"

namespace sluice {

namespace {

// A rank's shards, in the order of the arena.
std::vector<Slice> ascending_shards(const GradientBuckets& buckets, int ranks, int rank) {
  std::vector<Slice> shards = cut_shards(cut_buckets(buckets, ranks), ranks, rank);
  std::reverse(shards.begin(), shards.end());
  return shards;
}

TensorView view_of(std::vector<double>& memory, int64_t begin, int64_t count) {
  return TensorView(memory.empty() ? nullptr : memory.data() + begin, {count}, DType::f64);
}

}  // namespace

GradientNorm::GradientNorm(const ShardedArena& arena, const Mesh& mesh)
    : experts_(mesh.axis(Axis::ep)) {
  for (const ShardedArena::Group& group : arena.groups()) {
    const int64_t blocks = group.buckets.span.size() / kNormBlock;
    blocks_.push_back({.which = group.which,
                       .ranks = group.ranks,
                       .buckets = group.buckets,
                       .of_rank = blocks / group.ranks->size(),
                       .own = {},
                       .all = {},
                       .places = {}});
  }
}

void GradientNorm::allocate(Blocks& blocks) {
  const int ranks = blocks.ranks->size();
  blocks.own.resize(blocks.of_rank);
  blocks.all.resize(blocks.of_rank * ranks);
  blocks.places.resize(blocks.of_rank * ranks);
  int64_t place = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    for (const Slice& shard : ascending_shards(blocks.buckets, ranks, rank)) {
      const int64_t first = (shard.begin - blocks.buckets.span.begin) / kNormBlock;
      for (int64_t block = first; block < first + shard.size() / kNormBlock; ++block)
        blocks.places[block] = place++;
    }
  }
}

double GradientNorm::sum_of(const Context& ctx, const HeldTensor& gradients, Blocks& blocks) {
  if (!ctx.counting() && blocks.own.empty()) allocate(blocks);
  int64_t done = 0;
  for (const Slice& shard :
       ascending_shards(blocks.buckets, blocks.ranks->size(), blocks.ranks->rank())) {
    const int64_t count = shard.size() / kNormBlock;
    block_squares(ctx, {.x = gradients.at(shard), .sums = view_of(blocks.own, done, count)});
    done += count;
  }
  blocks.ranks
      ->all_gather(view_of(blocks.own, 0, blocks.of_rank),
                   view_of(blocks.all, 0, blocks.of_rank * blocks.ranks->size()))
      .wait();
  double sum = 0;
  for (const int64_t place : blocks.places) sum += blocks.all[place];
  return sum;
}

double GradientNorm::squared(const Context& ctx, const HeldTensor& gradients) {
  double squared = 0;
  for (Blocks& blocks : blocks_) {
    double sum = sum_of(ctx, gradients, blocks);
    if (blocks.which == ReduceGroup::dense) {  // the same parameters on all ranks
      squared += sum;
      continue;
    }
    std::vector<double> of_ranks(experts_.size());
    experts_.all_gather(ConstTensorView(&sum, {1}), view_of(of_ranks, 0, experts_.size())).wait();
    for (const double of_rank : of_ranks) squared += of_rank;
  }
  return squared;
}

}  // namespace sluice
