// Ranks that talk to each other. Four implementations, one contract (tests/parallel):
//   self    one rank; copies where a verb has an output of its own
//   thread  ranks are threads of one process (parallel/thread_communicator.h), for tests and verify
//   mpi     host memory between processes (parallel/mpi_communicator.h)
//   nccl    device memory
// and one that only counts: planned (parallel/planned_communicator.h).
//
// The contract:
// - Verbs enqueue and return at once. A group does what it was asked in the order asked; groups go
//   on beside each other, so that a bucket of gradients does not hold up a state on its way. What
//   must follow a verb of another group waits for that verb's event. Groups cannot deadlock each
//   other as long as all ranks of each call in the same order. Verbs of one rank are called from
//   one thread at a time.
// - A buffer in flight is neither freed nor touched before its event is waited for.
// - Wrong arguments throw at the call; what goes wrong later throws at wait().
// - Sums are taken in an order that depends on the number of ranks alone, by the halving tree of
//   kernels/core/halving_tree.h: not on timing, not on the implementation, not on how data are cut.
//   all_reduce equals reduce_scatter followed by all_gather, bit for bit. bf16 is summed in f32 and
//   rounded once.
// - Views are packed. A verb takes any number of elements, zero too. What it sends and what it
//   receives lie apart, except where a verb says otherwise.
#pragma once

#include <array>
#include <cstdint>
#include <future>
#include <memory>
#include <span>
#include <utility>

#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"

namespace sluice {

// How an implementation waits for a verb of its own.
class Completion {
 public:
  virtual ~Completion() = default;
  virtual void wait() const = 0;  // throws what went wrong, every time
  virtual bool done() const = 0;
  virtual void order(const Stream& stream) const = 0;
};

// The end of an enqueued verb. Copyable; may be waited for any number of times.
class Event {
 public:
  Event() = default;  // of a verb that is done already
  explicit Event(std::shared_future<void> future);
  explicit Event(std::shared_ptr<const Completion> completion)
      : completion_(std::move(completion)) {}

  // The caller waits; rethrows what went wrong.
  void wait() const {
    if (completion_ != nullptr) completion_->wait();
  }
  bool done() const { return completion_ == nullptr || completion_->done(); }
  // What `stream` is given from now on runs after the verb. On the CPU, where streams run inline,
  // that is wait(); on a GPU nobody waits here.
  void order(const Stream& stream) const {
    if (completion_ != nullptr) completion_->order(stream);
  }

 private:
  std::shared_ptr<const Completion> completion_;
};

enum class ReduceOp : uint8_t { sum, max };  // a NaN wins every max

enum class Verb : uint8_t {
  broadcast,
  all_reduce,
  all_gather,
  reduce_scatter,
  all_to_all_v,
  point_to_point,  // send, recv and send_recv
  barrier,
};
inline constexpr int kNumVerbs = 7;
const char* name_of(Verb verb);
const char* name_of(ReduceOp op);

// What a verb has moved so far, for this rank. Nothing is counted in a group of one.
struct Traffic {
  int64_t calls = 0;
  int64_t contributed = 0;  // bytes of this rank's own data that other ranks get, each counted once
  int64_t sent = 0;         // bytes that left for other ranks
  int64_t received = 0;     // bytes that came from other ranks

  friend bool operator==(const Traffic& a, const Traffic& b) = default;
};

// Part `part` of `total` elements dealt to `parts` ranks in order: the first (total mod parts) hold
// one more. The slices of all_gather and reduce_scatter, and of tokens over sequence ranks.
struct Slice {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
};
Slice slice_of(int64_t total, int parts, int part);

inline constexpr int kNoRank = -1;   // send_recv: no peer on that side
inline constexpr int kNoColor = -1;  // split: in no group

class Communicator {
 public:
  virtual ~Communicator() = default;  // never communicates

  virtual const char* name() const = 0;  // "self", "thread", "mpi", "nccl"
  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual Event broadcast(const TensorView& data, int root) = 0;
  virtual Event all_reduce(const TensorView& data, ReduceOp op) = 0;
  // whole = the parts of all ranks in order. `part` is this rank's slice_of(whole), and may lie in
  // `whole` at its place.
  virtual Event all_gather(const ConstTensorView& part, const TensorView& whole) = 0;
  // part = this rank's slice_of the reduction of `whole`; it may lie in `whole` at its place.
  virtual Event reduce_scatter(const ConstTensorView& whole, const TensorView& part,
                               ReduceOp op) = 0;
  // Elements for (from) rank r follow those for (from) rank r - 1; the counts, one a rank, sum to
  // the sizes of the views. It also gathers uneven parts and reaches several neighbours at once.
  virtual Event all_to_all_v(const ConstTensorView& outgoing,
                             std::span<const int64_t> outgoing_counts, const TensorView& incoming,
                             std::span<const int64_t> incoming_counts) = 0;

  // Done when the peer has taken (sent) the data. Two ranks that both send first wait for ever:
  // what goes both ways is one send_recv.
  virtual Event send(const ConstTensorView& data, int to) = 0;
  virtual Event recv(const TensorView& data, int from) = 0;
  // Both at once: the step of a ring, or with kNoRank on one side the end of a chain.
  virtual Event send_recv(const ConstTensorView& outgoing, int to, const TensorView& incoming,
                          int from) = 0;
  virtual Event barrier() = 0;

  // Collective, blocking: the ranks that gave the same color, ordered by (key, rank). Null for
  // kNoColor. The group must not outlive this communicator.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  // Waits until the stream has done what it was given. Throws if a verb of this communicator, or of
  // a group split from it, fails meanwhile: else the stream might wait for a lost peer for ever.
  virtual void sync(const Stream& stream) { stream.sync(); }

  // Gives up, and takes the peers along. mpi: ends all processes with `code` and does not return.
  // thread: every wait of every rank throws from now on. nccl: the same on this rank, also of
  // groups split from it; the peers are the host communicator's part. self: nothing. May be called
  // by any thread, at any time.
  virtual void abort(ExitCode code) = 0;

  // Collective: waits for what was enqueued and leaves the runtime (mpi: finalises it when this is
  // the world). Only the destructor may follow.
  virtual void shutdown() = 0;

  // Read it when no verb is in flight.
  virtual Traffic traffic(Verb verb) const = 0;
};

// One number over all ranks, for losses, counts and flags. Waits.
template <class T>
T reduce_value(Communicator& group, T value, ReduceOp op) {
  group.all_reduce(TensorView(&value, {1}), op).wait();
  return value;
}

}  // namespace sluice
