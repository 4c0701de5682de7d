#include "trainer/checkpoint/shard_files.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <set>

#include "data/files.h"
#include "data/hdf5_file.h"
#include "parallel/communicator.h"

namespace sluice {

static_assert(std::endian::native == std::endian::little, "hashes are of little-endian elements");

namespace {

// Elements [first, first + count) of a piece.
LocalPiece cut(const LocalPiece& piece, int64_t first, int64_t count) {
  LocalPiece part = piece;
  part.region.begin = piece.region.begin + first;
  part.region.end = part.region.begin + count;
  part.data = static_cast<const char*>(piece.data) + first * int64_t(size_of(piece.dtype));
  return part;
}

void append_files(const std::vector<LocalPiece>& pieces, TensorKind kind, int rank,
                  int64_t max_bytes, std::vector<ShardFile>& files) {
  int64_t room = 0;
  int num_files = 0;
  for (const LocalPiece& piece : pieces) {
    if (piece.kind != kind) continue;
    const int64_t size = int64_t(size_of(piece.dtype));
    for (int64_t first = 0; first < piece.region.count();) {
      if (room < size) {
        const std::string part = num_files == 0 ? "" : fmt::format("-{}", num_files);
        files.push_back(
            {.name = fmt::format("{}-{}{}.h5", name_of(kind), rank, part), .pieces = {}});
        num_files += 1;
        room = std::max(max_bytes, size);
      }
      const int64_t count = std::min(piece.region.count() - first, room / size);
      files.back().pieces.push_back(cut(piece, first, count));
      first += count;
      room -= count * size;
    }
  }
}

}  // namespace

std::vector<ShardFile> plan_files(const std::vector<LocalPiece>& pieces, int rank,
                                  int64_t max_bytes) {
  std::vector<ShardFile> files;
  append_files(pieces, TensorKind::model, rank, max_bytes, files);
  append_files(pieces, TensorKind::optim, rank, max_bytes, files);
  return files;
}

WrittenFile write_shard_file(const std::string& folder, const ShardFile& shard) {
  WrittenFile written;
  std::set<std::string> datasets;
  Hdf5Writer file;
  for (const LocalPiece& piece : shard.pieces) {
    // A file may hold several pieces of a tensor: "w", "w@1", "w@2".
    std::string dataset = piece.name;
    for (int copy = 1; !datasets.insert(dataset).second; ++copy)
      dataset = fmt::format("{}@{}", piece.name, copy);
    file.write(dataset, {stored_type(piece.dtype), {piece.region.count()}}, piece.data);
    const std::string_view bytes(static_cast<const char*>(piece.data), size_t(piece.bytes()));
    written.tensors.push_back({.name = piece.name,
                               .kind = piece.kind,
                               .dtype = piece.dtype,
                               .dims = piece.dims,
                               .parts = piece.parts,
                               .pieces = {{.region = piece.region,
                                           .file = shard.name,
                                           .dataset = dataset,
                                           .hash = xxh3_128_hex(bytes)}}});
  }
  const Hdf5Image image = file.finish();
  const std::string_view bytes = image.bytes();
  written.file = {.name = shard.name, .bytes = int64_t(bytes.size()), .hash = xxh3_128_hex(bytes)};
  atomic_write_file(folder + "/" + shard.name, bytes);
  return written;
}

}  // namespace sluice
