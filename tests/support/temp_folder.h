// A folder of its own for one test, removed with everything in it.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/error.h"

namespace sluice::test {

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  SLUICE_CHECK(file.good(), "cannot read ", path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// In memory where that is possible: checkpoints and stores sync often. It converts to its path.
class TempFolder {
 public:
  TempFolder() {
    const bool in_memory = ::access("/dev/shm", W_OK) == 0;
    const std::filesystem::path parent =
        in_memory ? "/dev/shm" : std::filesystem::temp_directory_path();
    std::string name = (parent / "sluice-test-XXXXXX").string();
    SLUICE_CHECK(::mkdtemp(name.data()) != nullptr, "no temporary folder");
    path_ = std::filesystem::canonical(name).string();  // as the kernel calls it
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  operator const std::string&() const { return path_; }
  // The path of a name in it.
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  // Names in it, hidden ones too, sorted.
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
  }

  // Writes a file and returns its path.
  std::string write(const std::string& name, std::string_view bytes) const {
    const std::string path = *this / name;
    std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
    return path;
  }
  std::string read(const std::string& name) const { return read_text(*this / name); }

 private:
  std::string path_;
};

}  // namespace sluice::test
