#include "data/files.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/core/error.h"

namespace sluice {

namespace {

// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  int get() const { return fd_; }
  int close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

[[noreturn]] void fail(const std::string& path, const char* doing, int error) {
  throw IoError(fmt::format("{}: cannot {}: {}", path, doing, std::strerror(error)));
}

// Space is what usually lacks: say how much is needed and how much is left.
[[noreturn]] void fail_to_write(const std::string& path, size_t bytes, const char* doing,
                                int error) {
  struct statvfs disk {};
  const std::string folder = folder_of(path);
  std::string room;
  if (::statvfs(folder.c_str(), &disk) == 0)
    room = fmt::format(", {} bytes free", uint64_t{disk.f_bavail} * disk.f_frsize);
  const char* remedy = error == EFBIG ? "raise the file size limit (ulimit -f)"
                                      : "free some space or choose another folder";
  throw IoError(fmt::format("{}: cannot {}: {} ({} bytes needed{}); {}", path, doing,
                            std::strerror(error), bytes, room, remedy));
}

// A new file beside `path`; its name goes to `temporary`.
Descriptor create_beside(const std::string& path, std::string& temporary) {
  const size_t slash = path.rfind('/');
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (name.empty()) throw UsageError(fmt::format("{}: expected a file's name, got a folder", path));
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const std::string candidate =
        fmt::format("{}/.{}.{}.{}.tmp", folder_of(path), name, ::getpid(), attempt);
    const int fd = ::open(candidate.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) {
      temporary = candidate;
      return Descriptor(fd);
    }
    if (errno == ENOENT)
      throw IoError(
          fmt::format("{}: there is no folder {}; create it first", path, folder_of(path)));
    if (errno != EEXIST) fail(path, "create a file in its folder", errno);
  }
  throw IoError(
      fmt::format("{}: its folder is full of temporary files; remove .{}.*.tmp", path, name));
}

void write_all(int fd, const std::string& path, std::string_view bytes) {
  size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t count = ::write(fd, bytes.data() + written, bytes.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_to_write(path, bytes.size(), "write", errno);
    written += size_t(count);
  }
}

std::string hex_of(const XXH128_hash_t& hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  std::string hex;
  for (const unsigned char byte : canonical.digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

}  // namespace

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

void sync_folder(const std::string& folder) {
  Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() < 0) fail(folder, "open the folder", errno);
  if (::fsync(descriptor.get()) != 0) fail(folder, "fsync the folder", errno);
}

StagedFile::StagedFile(const std::string& path, std::string_view bytes)
    : path_(path), bytes_(int64_t(bytes.size())) {
  Descriptor file = create_beside(path, temporary_);
  try {
    if (!bytes.empty()) {
      const int error = ::posix_fallocate(file.get(), 0, off_t(bytes.size()));
      if (error != 0) fail_to_write(path, bytes.size(), "reserve space", error);
    }
    write_all(file.get(), path, bytes);
    // A failed fsync may have dropped the pages: the file is given up, never synced again.
    if (::fsync(file.get()) != 0) fail_to_write(path, bytes.size(), "fsync", errno);
    if (file.close() != 0) fail_to_write(path, bytes.size(), "close", errno);
  } catch (...) {
    ::unlink(temporary_.c_str());
    throw;
  }
}

StagedFile::~StagedFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

StagedFile::StagedFile(StagedFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, std::string())),
      bytes_(other.bytes_) {}

void StagedFile::commit() {
  SLUICE_CHECK(!temporary_.empty(), path_, " is committed already");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0)
    fail(path_, "rename the finished file to its name", errno);
  temporary_.clear();
  sync_folder(folder_of(path_));
}

std::string read_whole_file(const std::string& path, int64_t max_bytes) {
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) fail(path, "open", errno);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail(path, "stat", errno);
  if (!S_ISREG(status.st_mode)) throw IoError(fmt::format("{}: not a regular file", path));
  if (status.st_size > max_bytes) {
    throw DataError(fmt::format("{}: expected at most {} bytes, got {}", path, max_bytes,
                                int64_t(status.st_size)));
  }
  std::string bytes(size_t(status.st_size), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path, "read", errno);
    if (count == 0) throw IoError(fmt::format("{}: became shorter while being read", path));
    done += size_t(count);
  }
  return bytes;
}

std::string xxh3_128_hex(std::string_view bytes) {
  return hex_of(XXH3_128bits(bytes.data(), bytes.size()));
}

uint64_t xxh3_64(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

// XXH3_state_t is over-aligned; the library's own allocation respects that.
struct Xxh3Stream::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

Xxh3Stream::Xxh3Stream() : state_(std::make_unique<State>()) {
  SLUICE_CHECK(state_->xxh != nullptr && XXH3_128bits_reset(state_->xxh) == XXH_OK, "xxHash state");
}
Xxh3Stream::~Xxh3Stream() = default;
Xxh3Stream::Xxh3Stream(Xxh3Stream&&) noexcept = default;
Xxh3Stream& Xxh3Stream::operator=(Xxh3Stream&&) noexcept = default;

void Xxh3Stream::update(const void* data, size_t bytes) {
  XXH3_128bits_update(state_->xxh, data, bytes);
}

std::string Xxh3Stream::hex() const { return hex_of(XXH3_128bits_digest(state_->xxh)); }

}  // namespace sluice
