#include "data/prefetch.h"

#include <chrono>
#include <utility>

namespace sluice {

Prefetcher::Prefetcher(Make make, int64_t depth)
    : make_(std::move(make)), depth_(depth), worker_([this] { work(); }) {}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  worker_.join();
}

void Prefetcher::work() {
  for (int64_t n = 0;; ++n) {
    std::optional<Batch> batch;
    std::exception_ptr failure;
    try {
      batch = make_(n);
    } catch (...) {
      failure = std::current_exception();
    }
    const bool last = !batch.has_value();
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return stop_ || int64_t(ready_.size()) < depth_; });
    if (stop_) return;
    failure_ = failure;
    done_ = last;
    if (!last) ready_.push_back(std::move(*batch));
    changed_.notify_all();
    if (last) return;
  }
}

std::optional<Batch> Prefetcher::next() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return done_ || !ready_.empty(); });
  wait_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (ready_.empty()) {
    if (failure_) std::rethrow_exception(failure_);
    return std::nullopt;
  }
  std::optional<Batch> batch = std::move(ready_.front());
  ready_.pop_front();
  changed_.notify_all();
  return batch;
}

double Prefetcher::take_wait_seconds() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(wait_seconds_, 0.0);
}

}  // namespace sluice
