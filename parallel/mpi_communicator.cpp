#include "parallel/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/host_communicator.h"
#include "parallel/single_copy.h"
#include "parallel/worker.h"

#define MPI_CHECK(call)                                           \
  do {                                                            \
    const int mpi_status = (call);                                \
    if (mpi_status != MPI_SUCCESS) mpi_failed(#call, mpi_status); \
  } while (0)

namespace sluice {
namespace {

using Clock = std::chrono::steady_clock;

// A message of some MiB moves only while both sides call MPI, and takes about this long; after that
// a peer is still computing, and so may we be: sleep. (With 100 us, 1 MiB took 8 times as long.)
constexpr auto kPollTime = std::chrono::milliseconds(2);
constexpr auto kSleepTime = std::chrono::microseconds(20);
// But as long as nothing of a message has come its sender is computing, and needs the cores more
// than this rank needs to know at once: sleep soon, and longer and longer.
constexpr auto kAwaitTime = std::chrono::microseconds(100);
constexpr auto kLongestSleep = std::chrono::microseconds(500);
constexpr auto kAbortTime = std::chrono::seconds(2);  // for others to come out of MPI

[[noreturn]] void mpi_failed(const char* call, int status) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw Error(ExitCode::hang, concat("MPI failed: ", text, " in ", call));
}

// What the world and its groups share. It belongs to the world.
struct Runtime {
  explicit Runtime(const WorldOptions& options) : options(options) {}

  WorldOptions options;
  std::atomic<bool> finalized = false;
  std::mutex calling;  // held by whoever calls MPI
};

// Requests of one exchange, in pieces of at most the message limit.
class Requests {
 public:
  Requests(MPI_Comm comm, int tag, int64_t limit) : comm_(comm), tag_(tag), limit_(limit) {}

  void send(int to, const char* data, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += limit_) {
      const int count = int(std::min(limit_, bytes - at));
      MPI_CHECK(MPI_Isend(data + at, count, MPI_BYTE, to, tag_, comm_, add()));
    }
  }
  // Any tag is let in, for then a rank that makes another call is found out at once instead of
  // being waited for; check_received() holds the tag to what it must be.
  void receive(int from, char* data, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += limit_) {
      const int count = int(std::min(limit_, bytes - at));
      expected_.push_back({requests_.size(), count});
      MPI_CHECK(MPI_Irecv(data + at, count, MPI_BYTE, from, MPI_ANY_TAG, comm_, add()));
    }
  }
  // Whether something has come from that rank that nobody receives yet.
  bool has_come(int from) const {
    int flag = 0;
    MPI_CHECK(MPI_Iprobe(from, MPI_ANY_TAG, comm_, &flag, MPI_STATUS_IGNORE));
    return flag != 0;
  }
  bool test() {
    statuses_.resize(requests_.size());
    int all_done = 0;
    const int status =
        MPI_Testall(int(requests_.size()), requests_.data(), &all_done, statuses_.data());
    if (status == MPI_ERR_IN_STATUS) {
      for (const MPI_Status& one : statuses_) {
        if (one.MPI_ERROR != MPI_SUCCESS && one.MPI_ERROR != MPI_ERR_PENDING)
          mpi_failed("MPI_Testall", one.MPI_ERROR);
      }
    }
    MPI_CHECK(status);
    return all_done != 0;
  }
  template <class Check>
  void check_received(Check&& check) const {
    for (const Expected& expected : expected_) {
      const MPI_Status& status = statuses_[expected.request];
      int count = 0;
      MPI_CHECK(MPI_Get_count(&status, MPI_BYTE, &count));
      check(status.MPI_SOURCE, expected.bytes, count, status.MPI_TAG);
    }
  }

 private:
  MPI_Request* add() { return &requests_.emplace_back(MPI_REQUEST_NULL); }

  MPI_Comm comm_;
  int tag_;
  int64_t limit_;
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  struct Expected {
    size_t request = 0;
    int bytes = 0;
  };
  std::vector<Expected> expected_;
};

class MpiCommunicator final : public HostCommunicator {
 public:
  MpiCommunicator(Runtime& runtime, MPI_Comm comm, int rank, int size,
                  std::unique_ptr<Worker> worker)
      : HostCommunicator(rank, size, {.check_calls = runtime.options.check_calls}),
        runtime_(runtime),
        comm_(comm),
        worker_(std::move(worker)) {}
  ~MpiCommunicator() override {
    if (!in_flight()) return;
    cancelled_ = true;
    worker_->drain();
  }

  // Makes this the world, which ends the runtime with itself.
  void own(std::unique_ptr<Runtime> runtime) { owned_ = std::move(runtime); }

  const char* name() const override { return "mpi"; }
  void abort(ExitCode code) override;
  void shutdown() override;

 private:
  Event enqueue(std::function<void()> job) override { return worker_->run(std::move(job)); }
  void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                uint32_t tag) override;
  void wait(Requests& requests, std::vector<Incoming> awaited);
  std::unique_ptr<Communicator> make_group(int color, const std::vector<int>& members,
                                           int index) override;

  std::unique_ptr<Runtime> owned_;
  Runtime& runtime_;
  MPI_Comm comm_;
  std::string broken_;                   // by an earlier failure
  std::atomic<bool> cancelled_ = false;  // nobody will wait for what is in flight
  std::unique_ptr<Worker> worker_;       // last: its jobs use the others
};

void MpiCommunicator::exchange(std::span<const Outgoing> outgoing,
                               std::span<const Incoming> incoming, uint32_t tag) {
  if (!broken_.empty()) throw Error(ExitCode::hang, "after an earlier failure: " + broken_);
  try {
    Requests requests(comm_, int(tag), runtime_.options.message_limit);
    {
      const std::lock_guard lock(runtime_.calling);
      for (const Outgoing& message : outgoing)
        requests.send(message.peer, message.data, message.bytes);
    }
    wait(requests, {incoming.begin(), incoming.end()});
    const std::lock_guard lock(runtime_.calling);
    requests.check_received([&](int from, int64_t expected, int64_t bytes, int tag_got) {
      check_message({.peer = from, .bytes = expected}, bytes, tag, uint32_t(tag_got));
    });
  } catch (const Error& error) {
    broken_ = error.what();
    throw;
  }
}

// Receives what is awaited as it comes, one message from a rank.
void MpiCommunicator::wait(Requests& requests, std::vector<Incoming> awaited) {
  Clock::time_point sleep_from = Clock::now() + (awaited.empty() ? kPollTime : kAwaitTime);
  std::chrono::microseconds sleep = kSleepTime;
  const auto done = [&] {
    const std::lock_guard lock(runtime_.calling);
    const size_t come = std::erase_if(awaited, [&](const Incoming& message) {
      if (!requests.has_come(message.peer)) return false;
      requests.receive(message.peer, message.data, message.bytes);
      return true;
    });
    if (come > 0) {
      sleep_from = Clock::now() + kPollTime;
      sleep = kSleepTime;
    }
    return awaited.empty() && requests.test();
  };
  while (!done()) {
    if (cancelled_) {
      throw Error(ExitCode::hang, "a communicator was dropped with verbs in flight");
    }
    if (Clock::now() < sleep_from) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(sleep);
      if (!awaited.empty()) sleep = std::min(2 * sleep, kLongestSleep);
    }
  }
}

// The members have just exchanged their colors, so all of them are on their way into this call: it
// may wait for them inside MPI.
std::unique_ptr<Communicator> MpiCommunicator::make_group(int color,
                                                          const std::vector<int>& members,
                                                          int index) {
  MPI_Comm group = MPI_COMM_NULL;
  {
    const std::lock_guard lock(runtime_.calling);
    MPI_CHECK(MPI_Comm_split(comm_, members.empty() ? MPI_UNDEFINED : color, index, &group));
  }
  if (members.empty()) return nullptr;
  return std::make_unique<MpiCommunicator>(runtime_, group, index, int(members.size()),
                                           std::make_unique<Worker>());
}

void MpiCommunicator::abort(ExitCode code) {
  if (runtime_.finalized) return;
  std::unique_lock lock(runtime_.calling, std::defer_lock);
  const Clock::time_point until = Clock::now() + kAbortTime;
  while (!lock.try_lock() && Clock::now() < until) std::this_thread::sleep_for(kSleepTime);
  MPI_Abort(MPI_COMM_WORLD, int(code));  // without the lock somebody is stuck inside MPI
}

void MpiCommunicator::shutdown() {
  barrier().wait();
  worker_
      ->run([this] {
        const std::lock_guard lock(runtime_.calling);
        if (owned_ == nullptr) {
          MPI_CHECK(MPI_Comm_free(&comm_));
        } else {
          MPI_CHECK(MPI_Finalize());  // on the thread that called MPI_Init
          runtime_.finalized = true;
        }
      })
      .wait();
}

void init_mpi(const Launcher& launcher, int& rank, int& size) {
  int threads = 0;
  choose_copies();
  MPI_CHECK(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &threads));
  MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
  MPI_CHECK(MPI_Comm_size(MPI_COMM_WORLD, &size));
  const bool differs = launcher.size != 0 && launcher.size != size;
  if (!differs && threads >= MPI_THREAD_SERIALIZED) return;
  MPI_Finalize();
  if (differs) {
    throw UsageError(concat(launcher.name, " started ", launcher.size, " ranks, MPI sees ", size,
                            ": the launcher and the MPI that sluice was built with differ; use the "
                            "mpirun of the latter (see sluice --version)"));
  }
  throw UsageError("this MPI does not let a thread of its own call it (MPI_THREAD_SERIALIZED)");
}

}  // namespace

World make_mpi_world(const Launcher& launcher, const WorldOptions& options) {
  SLUICE_CHECK(options.message_limit >= 1 && options.message_limit < (int64_t{1} << 31),
               "the message limit is at least 1 and below 2^31 bytes, got ", options.message_limit);
  auto runtime = std::make_unique<Runtime>(options);
  auto worker = std::make_unique<Worker>();
  World world;
  int rank = 0;
  int size = 1;
  worker
      ->run([&] {
        init_mpi(launcher, rank, size);
        MPI_Comm host = MPI_COMM_NULL;
        MPI_CHECK(
            MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host));
        MPI_CHECK(MPI_Comm_rank(host, &world.local_rank));
        MPI_CHECK(MPI_Comm_size(host, &world.local_size));
        MPI_CHECK(MPI_Comm_free(&host));
      })
      .wait();
  auto comm =
      std::make_unique<MpiCommunicator>(*runtime, MPI_COMM_WORLD, rank, size, std::move(worker));
  comm->own(std::move(runtime));
  world.comm = std::move(comm);
  return world;
}

}  // namespace sluice
