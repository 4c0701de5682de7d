// A run's folder: created, locked against a second job, its files written whole.
#pragma once

#include <string>

namespace sluice {

// Who holds a run folder, as its lock file says.
struct Lease {
  std::string pid = {};
  std::string host = {};
  std::string since = {};  // UTC, 2026-01-31T12:00:00Z
};

class RunFolder {
 public:
  // Creates the folder and takes its lock, which lasts until destruction or the process's end. For
  // one rank of a job. Throws UsageError naming the holder where another job has it, IoError where
  // the folder cannot be created or written.
  explicit RunFolder(const std::string& path);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

  // By temporary file and rename. Throw IoError.
  void write_config(const std::string& resolved_yaml) const;
  void write_environment(const std::string& json) const;

 private:
  std::string path_;
  int lock_fd_ = -1;
};

// runs/<name>, or `run` where it is given.
std::string run_folder_path(const std::string& run, const std::string& name);

}  // namespace sluice
