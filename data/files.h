// Whole files: read with a limit, written atomically, hashed. Whoever reads a final name sees the
// old bytes or the new ones, never half of a file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace sluice {

// A file that is written, but not yet under its name: beside the target under a temporary one,
// preallocated (which finds a full disk before a byte is written), written, fsynced and closed.
// Throws IoError naming the path, the bytes needed and the bytes free. Unless commit() is called
// the temporary file is removed and the target stays as it was.
class StagedFile {
 public:
  StagedFile(const std::string& path, std::string_view bytes);
  ~StagedFile();
  StagedFile(StagedFile&& other) noexcept;
  StagedFile& operator=(StagedFile&&) = delete;

  // Renames over the target and fsyncs the folder.
  void commit();
  int64_t bytes() const { return bytes_; }

 private:
  std::string path_;
  std::string temporary_;  // empty once renamed
  int64_t bytes_;
};

inline void atomic_write_file(const std::string& path, std::string_view bytes) {
  StagedFile(path, bytes).commit();
}

// The folder's entries reach the disk. Throws IoError.
void sync_folder(const std::string& folder);

// The folder a path lies in: "." for a bare name.
std::string folder_of(const std::string& path);

// Throws IoError if the file cannot be read or is no regular file, DataError if it is larger than
// `max_bytes` (before anything is allocated).
std::string read_whole_file(const std::string& path, int64_t max_bytes);

// XXH3-128, 32 hexadecimal digits in canonical (big-endian) order as printed by xxh128sum.
std::string xxh3_128_hex(std::string_view bytes);
uint64_t xxh3_64(std::string_view bytes);

// The same of bytes that come in pieces.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(Xxh3Stream&&) noexcept;
  Xxh3Stream& operator=(Xxh3Stream&&) noexcept;

  void update(const void* data, size_t bytes);
  std::string hex() const;  // of everything so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice
