// How the flat arenas of a ParameterStore are cut over the ranks: each section over the ranks that
// reduce it (parallel/mesh.h), bucket by bucket, so that every element is owned by
// exactly one of the ranks that hold it. Who owns an element updates it, keeps its moments, counts
// it in the gradient's norm and saves it.
#pragma once

#include <vector>

#include "layers/parameter_store.h"
#include "parallel/gradient_reducer.h"
#include "parallel/mesh.h"

namespace sluice {

// Disjoint slices of a flat arena, packed one after the other in the order of the arena.
class PackedSlices {
 public:
  PackedSlices() = default;
  explicit PackedSlices(std::vector<Slice> slices);  // in any order; neighbours are joined

  const std::vector<Slice>& slices() const { return slices_; }
  int64_t elements() const { return starts_.empty() ? 0 : starts_.back() + slices_.back().size(); }
  // Where [begin, end) of the arena begins when packed. Throws unless one slice holds all of it.
  int64_t position(const Slice& part) const;
  // What of [begin, end) is in the slices.
  std::vector<Slice> within(int64_t begin, int64_t end) const;

 private:
  std::vector<Slice> slices_;
  std::vector<int64_t> starts_;  // packed position of each
};

// A tensor over a flat arena, of which this rank holds all, or some slices packed.
struct HeldTensor {
  TensorView data;
  const PackedSlices* packed = nullptr;  // null: all

  TensorView at(const Slice& part) const;
};

class ShardedArena {
 public:
  // The parameters of one section of the store.
  struct Group {
    ReduceGroup which = ReduceGroup::dense;
    bool rounded = false;  // ranks need each other's bf16 copies, not the masters
    Communicator* ranks = nullptr;
    GradientBuckets buckets;
    int64_t padding = 0;  // where it begins, behind the last parameter, up to the span's end
  };

  // What ParameterStore::freeze() needs to know.
  static ArenaUnits units(const Mesh& mesh);
  // `zero`: parallel.zero. The store must have been frozen with these units.
  ShardedArena(const ParameterStore& store, const Mesh& mesh, int64_t zero);

  const std::vector<Group>& groups() const { return groups_; }
  int64_t flat_size() const { return flat_size_; }
  // This rank's shards. Together with those of the other ranks they are every parameter once.
  const PackedSlices& owned() const { return owned_; }
  // What this rank keeps optimizer state of: its shards, or everything with zero 0.
  const PackedSlices& held() const { return held_; }
  bool shards_state() const { return zero_ >= 1; }
  bool shards_gradients() const { return zero_ >= 2; }

 private:
  int64_t zero_;
  int64_t flat_size_;
  std::vector<Group> groups_;
  PackedSlices owned_, held_;
};

}  // namespace sluice
