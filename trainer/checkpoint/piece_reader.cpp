#include "trainer/checkpoint/piece_reader.h"

#include <fmt/core.h>

#include <algorithm>
#include <vector>

#include "data/files.h"
#include "kernels/core/error.h"

namespace sluice {

namespace {

constexpr int64_t kBlockElements = int64_t{1} << 18;

void read_block(const Hdf5Dataset& dataset, DType dtype, int64_t begin, int64_t count, void* out) {
  switch (dtype) {
    case DType::f64:
      return dataset.read_range(begin, count, static_cast<double*>(out));
    case DType::f32:
      return dataset.read_range(begin, count, static_cast<float*>(out));
    case DType::i64:
      return dataset.read_range(begin, count, static_cast<int64_t*>(out));
    case DType::i32:
      return dataset.read_range(begin, count, static_cast<int32_t*>(out));
    case DType::u16:
      return dataset.read_range(begin, count, static_cast<uint16_t*>(out));
    case DType::u8:
      return dataset.read_range(begin, count, static_cast<uint8_t*>(out));
    case DType::bf16:
      break;
  }
  throw Error(ExitCode::bug, fmt::format("checkpoints hold no {}", name_of(dtype)));
}

}  // namespace

PieceReader::PieceReader(const std::string& folder, const std::string& file)
    : file_(folder + "/" + file) {}

void PieceReader::read(const StoredTensor& tensor, const StoredPiece& piece, const Use& use) const {
  const int64_t count = piece.region.count();
  const Hdf5Dataset dataset = file_.dataset(piece.dataset, stored_type(tensor.dtype), {count});
  // Whole chunks: each is read, and its checksum computed, once.
  const int64_t chunk = std::clamp<int64_t>(dataset.chunk(), 1, std::max<int64_t>(count, 1));
  const int64_t block = std::max<int64_t>(1, kBlockElements / chunk) * chunk;
  std::vector<char> elements(std::min(block, count) * int64_t(size_of(tensor.dtype)));
  Xxh3Stream hash;
  for (int64_t first = 0; first < count; first += block) {
    const int64_t length = std::min(block, count - first);
    read_block(dataset, tensor.dtype, first, length, elements.data());
    hash.update(elements.data(), length * size_of(tensor.dtype));
    use(first, length, elements.data());
  }
  if (hash.hex() == piece.hash) return;
  throw DataError(fmt::format("{}: tensor {} [{}, {}): expected XXH3 {}, got {}", file_.path(),
                              tensor.name, piece.region.begin, piece.region.end, piece.hash,
                              hash.hex()));
}

}  // namespace sluice
