#include "trainer/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/files.h"
#include "kernels/core/error.h"

namespace sluice {
namespace {

constexpr const char* kLockName = ".lock";
constexpr const char* kRemedy = "; choose another folder with --run DIR";

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

// What the holder wrote; empty fields where it has not written yet.
Lease read_lease(int fd) {
  std::array<char, 1024> buffer{};
  const ssize_t bytes = ::pread(fd, buffer.data(), buffer.size() - 1, 0);
  const std::string text(buffer.data(), bytes > 0 ? size_t(bytes) : 0);
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  const auto field = [&](const char* key) {
    const bool there = json.is_object() && json.contains(key) && json[key].is_string();
    return there ? json[key].get<std::string>() : std::string("?");
  };
  return {.pid = field("pid"), .host = field("host"), .since = field("since")};
}

void write_lease(int fd, const std::string& path) {
  const nlohmann::ordered_json json = {
      {"pid", std::to_string(::getpid())}, {"host", host_name()}, {"since", utc_now()}};
  const std::string text = json.dump() + "\n";
  const bool written =
      ::ftruncate(fd, 0) == 0 && ::pwrite(fd, text.data(), text.size(), 0) == ssize_t(text.size());
  if (!written) throw IoError("cannot write " + path + ": " + std::strerror(errno) + kRemedy);
}

void create_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error && !std::filesystem::is_directory(path))
    error = std::make_error_code(std::errc::not_a_directory);
  if (error)
    throw IoError("cannot create the run folder " + path + ": " + error.message() + kRemedy);
}

}  // namespace

RunFolder::RunFolder(const std::string& path) : path_(path) {
  create_folder(path);
  const std::string lock = file(kLockName);
  // Never unlinked: a lock on a name that others may have replaced would be none.
  const int fd = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) throw IoError("cannot open " + lock + ": " + std::strerror(errno) + kRemedy);
  try {
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) throw IoError("cannot lock " + lock + ": " + std::strerror(errno));
      const Lease lease = read_lease(fd);
      throw UsageError(concat("the run folder ", path, " is locked by pid ", lease.pid, " on ",
                              lease.host, " since ", lease.since,
                              "\n  wait until it ends, or choose another folder with --run DIR"));
    }
    write_lease(fd, lock);
  } catch (...) {
    ::close(fd);
    throw;
  }
  lock_fd_ = fd;
}

RunFolder::~RunFolder() { ::close(lock_fd_); }

void RunFolder::write_config(const std::string& resolved_yaml) const {
  atomic_write_file(file("config.yaml"), resolved_yaml);
}

void RunFolder::write_environment(const std::string& json) const {
  atomic_write_file(file("env.json"), json);
}

std::string run_folder_path(const std::string& run, const std::string& name) {
  return run.empty() ? "runs/" + name : run;
}

}  // namespace sluice
