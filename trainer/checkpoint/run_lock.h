// One writer a run folder. A launcher may return while ranks still live, and a restart then meets
// them; so the folder is locked before anything is written.
#pragma once

#include <string>

namespace sluice {

class RunLock {
 public:
  // Makes the folder if there is none and locks <run>/.lock, in which it notes pid, host and time.
  // Throws UsageError naming the holder if another process has it, IoError if it cannot be made.
  explicit RunLock(const std::string& run_folder);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace sluice
