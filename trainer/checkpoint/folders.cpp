#include "trainer/checkpoint/folders.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "data/files.h"
#include "kernels/core/error.h"

namespace sluice {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kStepHead = "step-";
constexpr size_t kStepDigits = 8;

[[noreturn]] void fail(const std::string& path, const std::string& doing, int error) {
  throw IoError(fmt::format("{}: cannot {}: {}", path, doing, std::strerror(error)));
}

// Names in the folder; none if it does not exist.
std::vector<std::string> list_names(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error && error != std::errc::no_such_file_or_directory)
    fail(folder, "list the folder", error.value());
  return names;
}

// For network file systems that do not know RENAME_NOREPLACE: the run's lock keeps other writers
// away, and rename never replaces a folder that is not empty. Returns errno.
int rename_without_flag(const std::string& from, const std::string& to) {
  if (exists(to)) return EEXIST;
  return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

bool is_folder(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

}  // namespace

std::string step_name(int64_t step) {
  SLUICE_CHECK(step >= 0 && step <= kMaxStep, "step ", step, " has no name");
  return fmt::format("{}{:08}", kStepHead, step);
}

std::optional<int64_t> parse_step_name(std::string_view name) {
  if (name.size() != kStepHead.size() + kStepDigits || !name.starts_with(kStepHead)) return {};
  int64_t step = 0;
  for (const char c : name.substr(kStepHead.size())) {
    if (c < '0' || c > '9') return {};
    step = 10 * step + (c - '0');
  }
  return step;
}

std::string temporary_name(int64_t step, const std::string& run_id) {
  return fmt::format(".{}.{}.tmp", step_name(step), run_id);
}

std::string trash_name(int64_t step, const std::string& run_id) {
  return fmt::format(".trash-{}.{}", step_name(step), run_id);
}

std::string aside_name(int64_t step, const std::string& run_id) {
  return fmt::format("aside-{}.{}", step_name(step), run_id);
}

bool safe_run_id(std::string_view id) {
  if (id.empty() || id.size() > 64) return false;
  return std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
}

std::vector<int64_t> list_steps(const std::string& checkpoints) {
  std::vector<int64_t> steps;
  for (const std::string& name : list_names(checkpoints)) {
    const std::optional<int64_t> step = parse_step_name(name);
    if (step && is_folder(checkpoints + "/" + name)) steps.push_back(*step);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

std::vector<std::string> list_leftovers(const std::string& checkpoints) {
  std::vector<std::string> leftovers;
  for (const std::string& name : list_names(checkpoints)) {
    const bool temporary =
        name.ends_with(".tmp") && (name.starts_with(".step-") || name.starts_with(".latest."));
    if (temporary || name.starts_with(".trash-")) leftovers.push_back(name);
  }
  std::sort(leftovers.begin(), leftovers.end());
  return leftovers;
}

void make_folders(const std::string& folder) {
  if (is_folder(folder)) return;
  const std::string parent = folder_of(folder);
  if (parent != folder) make_folders(parent);
  if (::mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST) fail(folder, "make the folder", errno);
  if (!is_folder(folder)) throw IoError(fmt::format("{}: expected a folder, got a file", folder));
  sync_folder(parent);
}

bool exists(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0;
}

void rename_new(const std::string& from, const std::string& to) {
  int error =
      ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0 ? 0 : errno;
  if (error == EINVAL || error == ENOSYS) error = rename_without_flag(from, to);
  if (error != 0) fail(from, "rename to " + to, error);
}

void remove_folder(const std::string& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) fail(folder, "remove", error.value());
}

int64_t free_bytes(const std::string& folder) {
  struct statvfs disk {};
  if (::statvfs(folder.c_str(), &disk) != 0) fail(folder, "ask for its free space", errno);
  return int64_t(disk.f_bavail) * int64_t(disk.f_frsize);
}

void probe_folder(const std::string& checkpoints) {
  make_folders(checkpoints);
  const std::string probe = checkpoints + "/.probe";
  atomic_write_file(probe, "probe");
  if (::unlink(probe.c_str()) != 0) fail(probe, "remove", errno);
}

}  // namespace sluice
