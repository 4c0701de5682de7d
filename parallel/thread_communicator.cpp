#include "parallel/thread_communicator.h"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <latch>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/core/threads.h"
#include "parallel/host_communicator.h"
#include "parallel/worker.h"

namespace sluice {
namespace {

// A message lies on its sender's stack until it is taken; the receiver copies straight from the
// sender's buffer.
struct Message {
  enum class State { posted, copying, taken };
  const char* data = nullptr;
  int64_t bytes = 0;
  uint32_t tag = 0;
  State state = State::posted;
};

struct Group {
  explicit Group(std::vector<int> world_ranks)
      : world_ranks(std::move(world_ranks)),
        posted(this->world_ranks.size() * this->world_ranks.size()) {}

  std::deque<Message*>& from_to(int from, int to) { return posted[from * world_ranks.size() + to]; }

  std::vector<int> world_ranks;
  std::vector<std::deque<Message*>> posted;
  std::map<std::pair<int, int>, std::shared_ptr<Group>> parts;  // by (number of the split, color)
};

// What all ranks share. One mutex guards every group: ranks are few, and copies happen outside it.
struct Shared {
  explicit Shared(int size) : left(size, false) {}

  void fail(const std::string& reason) {
    const std::lock_guard lock(mutex);
    if (failure.empty()) failure = reason;
    changed.notify_all();
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::string failure;     // why every wait throws; empty: all is well
  std::vector<bool> left;  // ranks whose body has returned
};

class ThreadCommunicator final : public HostCommunicator {
 public:
  ThreadCommunicator(Shared& shared, std::shared_ptr<Group> group, int rank)
      : HostCommunicator(rank, int(group->world_ranks.size()), {.check_calls = true}),
        shared_(shared),
        group_(std::move(group)) {}
  ~ThreadCommunicator() override {
    if (!in_flight()) return;
    shared_.fail(concat("rank ", rank(), " dropped a communicator with verbs in flight"));
    worker_.drain();
  }

  const char* name() const override { return "thread"; }
  void abort(ExitCode code) override {
    shared_.fail(concat("rank ", rank(), " gave up with exit code ", int(code)));
  }
  void shutdown() override {
    barrier().wait();
    worker_.drain();
  }

 private:
  Event enqueue(std::function<void()> job) override { return worker_.run(std::move(job)); }
  void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                uint32_t tag) override;
  std::unique_ptr<Communicator> make_group(int color, const std::vector<int>& members,
                                           int index) override;
  void take(std::unique_lock<std::mutex>& lock, const Incoming& wanted, uint32_t tag);
  void withdraw(std::unique_lock<std::mutex>& lock, std::span<const Outgoing> outgoing,
                std::vector<Message>& messages);
  bool has_left(int peer) const { return shared_.left[group_->world_ranks[peer]]; }
  [[noreturn]] void give_up() const { throw Error(ExitCode::hang, shared_.failure); }

  Shared& shared_;
  std::shared_ptr<Group> group_;
  int num_splits_ = 0;
  Worker worker_;  // last: its jobs use the others
};

void ThreadCommunicator::exchange(std::span<const Outgoing> outgoing,
                                  std::span<const Incoming> incoming, uint32_t tag) {
  std::vector<Message> messages;
  messages.reserve(outgoing.size());
  std::unique_lock lock(shared_.mutex);
  if (!shared_.failure.empty()) give_up();
  for (const Outgoing& message : outgoing) {
    messages.push_back({.data = message.data, .bytes = message.bytes, .tag = tag});
    group_->from_to(rank(), message.peer).push_back(&messages.back());
  }
  shared_.changed.notify_all();
  try {
    for (const Incoming& wanted : incoming) take(lock, wanted, tag);
    for (size_t i = 0; i < messages.size(); ++i) {
      const int peer = outgoing[i].peer;
      shared_.changed.wait(lock, [&] {
        return messages[i].state == Message::State::taken || !shared_.failure.empty() ||
               has_left(peer);
      });
      if (messages[i].state == Message::State::taken) continue;
      if (!shared_.failure.empty()) give_up();
      throw Error(ExitCode::hang, concat("rank ", rank(), " sends to rank ", peer,
                                         ", which has left without taking it"));
    }
  } catch (const Error& error) {
    if (shared_.failure.empty()) shared_.failure = error.what();
    withdraw(lock, outgoing, messages);
    throw;
  }
}

void ThreadCommunicator::take(std::unique_lock<std::mutex>& lock, const Incoming& wanted,
                              uint32_t tag) {
  std::deque<Message*>& queue = group_->from_to(wanted.peer, rank());
  shared_.changed.wait(
      lock, [&] { return !queue.empty() || !shared_.failure.empty() || has_left(wanted.peer); });
  if (!shared_.failure.empty()) give_up();
  if (queue.empty()) {
    throw Error(ExitCode::hang, concat("rank ", rank(), " waits for rank ", wanted.peer,
                                       ", which has left without sending"));
  }
  Message* message = queue.front();
  check_message(wanted, message->bytes, tag, message->tag);
  queue.pop_front();
  message->state = Message::State::copying;
  lock.unlock();
  std::memcpy(wanted.data, message->data, wanted.bytes);
  lock.lock();
  message->state = Message::State::taken;
  shared_.changed.notify_all();
}

// After a failure: nobody may find, or still be reading, what lies on this stack.
void ThreadCommunicator::withdraw(std::unique_lock<std::mutex>& lock,
                                  std::span<const Outgoing> outgoing,
                                  std::vector<Message>& messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    std::erase(group_->from_to(rank(), outgoing[i].peer), &messages[i]);
  }
  shared_.changed.notify_all();
  shared_.changed.wait(lock, [&] {
    return std::none_of(messages.begin(), messages.end(), [](const Message& message) {
      return message.state == Message::State::copying;
    });
  });
}

std::unique_ptr<Communicator> ThreadCommunicator::make_group(int color,
                                                             const std::vector<int>& members,
                                                             int index) {
  const int split = num_splits_++;
  if (members.empty()) return nullptr;
  const std::lock_guard lock(shared_.mutex);
  std::shared_ptr<Group>& part = group_->parts[{split, color}];
  if (part == nullptr) {
    std::vector<int> world_ranks;
    for (const int member : members) world_ranks.push_back(group_->world_ranks[member]);
    part = std::make_shared<Group>(std::move(world_ranks));
  }
  return std::make_unique<ThreadCommunicator>(shared_, part, index);
}

}  // namespace

void run_ranks(int size, const std::function<void(Communicator&)>& body) {
  SLUICE_CHECK(size >= 1, "a world has at least one rank, got ", size);
  Shared shared(size);
  std::vector<int> everyone(size);
  for (int rank = 0; rank < size; ++rank) everyone[rank] = rank;
  const auto world = std::make_shared<Group>(everyone);
  std::exception_ptr first;
  std::latch threads_set(size);

  const auto run = [&](int rank) {
    {
      const std::lock_guard lock(shared.mutex);  // OpenBLAS resizes shared tables in it
      set_num_threads(1);
    }
    threads_set.arrive_and_wait();
    try {
      ThreadCommunicator comm(shared, world, rank);
      body(comm);
    } catch (const std::exception& error) {
      {
        const std::lock_guard lock(shared.mutex);
        if (first == nullptr) first = std::current_exception();
      }
      shared.fail(concat("rank ", rank, " failed: ", error.what()));
    }
    const std::lock_guard lock(shared.mutex);
    shared.left[rank] = true;
    shared.changed.notify_all();
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back(run, rank);
  for (std::thread& thread : threads) thread.join();
  if (first != nullptr) std::rethrow_exception(first);
}

}  // namespace sluice
