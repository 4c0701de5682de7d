// The thread on which a communicator does its work, in the order it was asked. It starts with the
// first job: a group of one rank never has one.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

#include "parallel/communicator.h"

namespace sluice {

class Worker {
 public:
  Worker() = default;
  // Drops what is queued and waits for the job that runs, which its owner must have told to end.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // What the job throws is thrown by the event's wait().
  Event run(std::function<void()> job);
  // Waits for everything queued so far.
  void drain() {
    run([] {}).wait();
  }

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::packaged_task<void()>> jobs_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace sluice
