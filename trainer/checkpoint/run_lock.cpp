#include "trainer/checkpoint/run_lock.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>

#include "kernels/core/error.h"
#include "trainer/checkpoint/folders.h"

namespace sluice {

namespace {

std::string holder_note() {
  char host[256] = "unknown";
  ::gethostname(host, sizeof host - 1);
  return fmt::format("pid {} on {} since {:%Y-%m-%d %H:%M:%S} UTC", ::getpid(), host,
                     fmt::gmtime(std::time(nullptr)));
}

// What the holder has noted. It may be about to note it.
std::string read_note(int fd) {
  char note[512] = {};
  const ssize_t count = ::pread(fd, note, sizeof note - 1, 0);
  return count <= 0 ? "another process" : std::string(note, size_t(count));
}

}  // namespace

RunLock::RunLock(const std::string& run_folder) {
  make_folders(run_folder);
  const std::string path = run_folder + "/.lock";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd_ < 0) throw IoError(fmt::format("{}: cannot open: {}", path, std::strerror(errno)));
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    const std::string holder = read_note(fd_);
    ::close(fd_);
    if (error != EWOULDBLOCK)
      throw IoError(fmt::format("{}: cannot lock: {}", path, std::strerror(error)));
    throw UsageError(
        fmt::format("{} is locked by {}; wait for it, stop it, or choose another folder "
                    "with --run",
                    run_folder, holder));
  }
  // The lock counts, the note only names its holder: a full disk must not keep a run from starting.
  const std::string note = holder_note();
  const bool noted = ::ftruncate(fd_, 0) == 0 && ::pwrite(fd_, note.data(), note.size(), 0) >= 0;
  static_cast<void>(noted);
}

RunLock::~RunLock() { ::close(fd_); }

}  // namespace sluice
