// Cuts what a rank stores into files, and writes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/checkpoint/manifest.h"

namespace sluice {

// Elements of a tensor that this rank holds. Borrows them.
struct LocalPiece {
  std::string name = {};
  TensorKind kind = TensorKind::model;
  DType dtype = DType::f32;
  Dims dims = {};                         // global
  std::vector<ParameterPart> parts = {};  // as in ParameterStore
  Region region = {};
  const void* data = nullptr;  // the region's elements, packed, in host memory

  int64_t bytes() const { return region.count() * int64_t(size_of(dtype)); }
};

struct ShardFile {
  std::string name;
  std::vector<LocalPiece> pieces;
};

// model-<rank>.h5 and optim-<rank>.h5; what does not fit `max_bytes` goes to model-<rank>-1.h5 and
// so on, since a file is held in memory while it is written.
std::vector<ShardFile> plan_files(const std::vector<LocalPiece>& pieces, int rank,
                                  int64_t max_bytes);

// What a rank has written: the file, and the stored tensors with the pieces that are in it.
struct WrittenFile {
  StoredFile file;
  std::vector<StoredTensor> tensors;
};

// Hashes are of the bytes in memory, before they are written. Throws IoError.
WrittenFile write_shard_file(const std::string& folder, const ShardFile& shard);

}  // namespace sluice
