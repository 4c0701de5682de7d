#include "trainer/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/core/error.h"
#include "trainer/json_file.h"

namespace sluice {

namespace {

constexpr size_t kMaxName = 1024;  // bytes of a name from a file
// A name might be a pipe's: without O_NONBLOCK the open would wait for a writer.
constexpr int kReadFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;

[[noreturn]] void fail_open(const std::string& path, int error) {
  throw IoError(concat(path, ": cannot be opened: ", std::strerror(error)));
}

std::vector<std::string> safe_components(const std::string& name, const std::string& origin) {
  const auto refuse = [&](const char* why) {
    throw DataError(concat(origin, ": the file name ", printable(name), " ", why));
  };
  if (name.empty() || name.size() > kMaxName) refuse("is empty or too long");
  if (name.find('\0') != std::string::npos) refuse("holds a NUL");
  if (name.front() == '/') refuse("is an absolute path");
  std::vector<std::string> components;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    components.push_back(name.substr(begin, end - begin));
    begin = end + 1;
    if (components.back().empty() || components.back() == "." || components.back() == "..") {
      refuse("has an empty, '.' or '..' component");
    }
  }
  return components;
}

}  // namespace

OpenFile::OpenFile(const std::string& path) : path_(path) {
  descriptor_ = open(path.c_str(), kReadFlags);
  if (descriptor_ < 0) fail_open(path, errno);
  check_regular();
}

OpenFile::OpenFile(int descriptor, std::string path)
    : descriptor_(descriptor), path_(std::move(path)) {
  check_regular();
}

void OpenFile::check_regular() {
  struct stat status {};
  if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(std::exchange(descriptor_, -1));
    throw IoError(concat(path_, ": is not a regular file"));
  }
  bytes_ = uint64_t(status.st_size);
}

OpenFile OpenFile::beneath(const std::string& folder, const std::string& name,
                           const std::string& origin) {
  const std::vector<std::string> components = safe_components(name, origin);
  const std::string path = folder + "/" + name;
  // The folder itself is the user's word, so it may be a link; each step below it may not.
  int descriptor = open(folder.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY);
  if (descriptor < 0) fail_open(folder, errno);
  for (size_t i = 0; i < components.size(); ++i) {
    const int kind = i + 1 < components.size() ? O_DIRECTORY : 0;
    const int next = openat(descriptor, components[i].c_str(), kReadFlags | O_NOFOLLOW | kind);
    const int error = errno;
    close(descriptor);
    if (next < 0 && error == ELOOP) {
      throw DataError(concat(path,
                             ": is a symbolic link, and names from a file are not followed "
                             "through links: copy the folder with cp -rL and use the copy"));
    }
    if (next < 0) fail_open(path, error);
    descriptor = next;
  }
  return OpenFile(descriptor, path);
}

OpenFile::OpenFile(OpenFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      path_(std::move(other.path_)),
      bytes_(other.bytes_) {}

OpenFile& OpenFile::operator=(OpenFile&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

OpenFile::~OpenFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

void OpenFile::read(uint64_t offset, uint64_t count, void* out) const {
  char* to = static_cast<char*>(out);
  while (count > 0) {
    const ssize_t got = pread(descriptor_, to, count, off_t(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw IoError(concat(path_, ": cannot be read: ", std::strerror(errno)));
    if (got == 0) {
      throw IoError(concat(path_, ": ends at byte ", offset, ", ", count, " bytes early; it was ",
                           bytes_, " bytes long when it was opened"));
    }
    to += got;
    offset += uint64_t(got);
    count -= uint64_t(got);
  }
}

}  // namespace sluice
