#include "trainer/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/core/error.h"

namespace sluice {

AppendFile::AppendFile(const std::string& path, Warn warn) : path_(path), warn_(std::move(warn)) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) throw IoError("cannot open " + path + " for writing: " + std::strerror(errno));
}

AppendFile::~AppendFile() { ::close(fd_); }

void AppendFile::append(std::string_view bytes) {
  pending_ += bytes;
  if (pending_.size() > kMaxPending) {
    size_t cut = pending_.find('\n', pending_.size() - kMaxPending / 2);
    cut = cut == std::string::npos ? pending_.size() : cut + 1;
    pending_.erase(0, cut);
    lose("its oldest lines are given up");
  }
  flush();
}

bool AppendFile::flush() {
  while (!pending_.empty()) {
    const ssize_t written = ::write(fd_, pending_.data(), pending_.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      if (!warned_) lose(std::string(std::strerror(errno)) + "; the run goes on, lines are kept");
      return false;
    }
    pending_.erase(0, size_t(written));
  }
  warned_ = false;
  return true;
}

bool AppendFile::sync() {
  // Devices and pipes cannot be synced, and need not be.
  return flush() && (::fsync(fd_) == 0 || errno == EINVAL || errno == EROFS);
}

void AppendFile::lose(const std::string& why) {
  warned_ = true;
  if (warn_) warn_("cannot write " + path_ + ": " + why);
}

}  // namespace sluice
