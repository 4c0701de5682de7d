// Batches made ahead of time by one worker thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "data/batch.h"

namespace sluice {

class Prefetcher {
 public:
  // `make` gives the n-th batch, n = 0, 1, ..., or nothing after the last; it runs on the worker.
  // At most `depth` batches wait.
  using Make = std::function<std::optional<Batch>(int64_t n)>;
  Prefetcher(Make make, int64_t depth);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // The next batch, nothing after the last. Throws what `make` threw.
  std::optional<Batch> next();
  // Seconds spent waiting in next() since the last call of this function.
  double take_wait_seconds();

 private:
  void work();

  Make make_;
  int64_t depth_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> ready_;
  std::exception_ptr failure_;
  bool done_ = false;  // the worker has made its last batch
  bool stop_ = false;
  double wait_seconds_ = 0;
  std::thread worker_;
};

}  // namespace sluice
