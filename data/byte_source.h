// The bytes of a file from its start to its end, decompressed on the way.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace sluice {

enum class Compression { none, gzip, zstd };

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Writes up to `bytes` to `to` and returns how many; 0 only at the end.
  virtual size_t read(char* to, size_t bytes) = 0;
};

// Throws IoError if the file cannot be read. Reading throws DataError where the compressed data is
// damaged or ends too early; streams that follow one another (as cat makes them) are read on.
std::unique_ptr<ByteSource> open_bytes(const std::string& path, Compression compression);

}  // namespace sluice
