// A log that a full or failing disk must not end the run for: what cannot be written now is kept,
// warned of once, and written when the disk has room again, so that the file is whole afterwards.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace sluice {

using Warn = std::function<void(const std::string& message)>;

class AppendFile {
 public:
  // Opens at the end, creating the file. Throws IoError: at start a run should not go on without.
  AppendFile(const std::string& path, Warn warn);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  void append(std::string_view bytes);
  // Everything appended is on the disk; false where it is not.
  bool sync();

  int64_t pending_bytes() const { return int64_t(pending_.size()); }

 private:
  bool flush();
  void lose(const std::string& why);

  // Beyond this the oldest bytes are given up.
  static constexpr size_t kMaxPending = size_t{64} << 20;

  std::string path_;
  Warn warn_;
  int fd_ = -1;
  std::string pending_;
  bool warned_ = false;
};

}  // namespace sluice
