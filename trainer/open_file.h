// Regular files opened for reading at given offsets: by a path that the user gave, or by a name
// that a file gave, which is not trusted.
#pragma once

#include <cstdint>
#include <string>

namespace sluice {

class OpenFile {
 public:
  // Throws IoError if the path cannot be opened or is no regular file.
  explicit OpenFile(const std::string& path);
  // A name that came from a file: a relative path of plain components, none of them "..", opened
  // below the folder and through no symbolic link. Throws DataError for a name that breaks this,
  // naming `origin`, the file that holds the name.
  static OpenFile beneath(const std::string& folder, const std::string& name,
                          const std::string& origin);
  OpenFile(OpenFile&& other) noexcept;
  OpenFile& operator=(OpenFile&& other) noexcept;
  ~OpenFile();

  const std::string& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }  // when it was opened
  // Reads exactly `count` bytes. Throws IoError if there are fewer: the file was cut meanwhile.
  void read(uint64_t offset, uint64_t count, void* out) const;

 private:
  OpenFile(int descriptor, std::string path);
  void check_regular();

  int descriptor_ = -1;
  std::string path_;
  uint64_t bytes_ = 0;
};

}  // namespace sluice
