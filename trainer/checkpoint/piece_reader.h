// Reads stored pieces, in blocks, and checks each piece's hash on the way.
#pragma once

#include <functional>
#include <string>

#include "data/hdf5_file.h"
#include "trainer/checkpoint/manifest.h"

namespace sluice {

class PieceReader {
 public:
  // Throws as Hdf5Reader does.
  PieceReader(const std::string& folder, const std::string& file);

  // Elements [first, first + count) of the piece.
  using Use = std::function<void(int64_t first, int64_t count, const void* elements)>;

  // Hands the whole piece to `use`, block by block, and then throws DataError unless the hash is
  // the manifest's: what has been used is only good when this returns.
  void read(const StoredTensor& tensor, const StoredPiece& piece, const Use& use) const;

 private:
  Hdf5Reader file_;
};

}  // namespace sluice
