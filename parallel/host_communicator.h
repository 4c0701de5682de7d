// Every verb in host memory, written once over one primitive: exchange(), a group of sends and
// receives. self, thread and mpi differ in that primitive alone, so they give the same bits.
//
// Costs per rank of n, for a message of M bytes (see all_reduce in the .cpp for its memory):
//   broadcast        binomial tree, ceil(log2 n) rounds of M
//   all_gather       one round, M (n - 1) / n received (M: the whole)
//   reduce_scatter   M (n - 1) / n sent and received
//   all_reduce       both of these: 2 M (n - 1) / n
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/verb_arguments.h"

namespace sluice {

class HostCommunicator : public Communicator {
 public:
  int rank() const final { return rank_; }
  int size() const final { return size_; }

  Event broadcast(const TensorView& data, int root) final;
  Event all_reduce(const TensorView& data, ReduceOp op) final;
  Event all_gather(const ConstTensorView& part, const TensorView& whole) final;
  Event reduce_scatter(const ConstTensorView& whole, const TensorView& part, ReduceOp op) final;
  Event all_to_all_v(const ConstTensorView& outgoing, std::span<const int64_t> outgoing_counts,
                     const TensorView& incoming, std::span<const int64_t> incoming_counts) final;
  Event send(const ConstTensorView& data, int to) final;
  Event recv(const TensorView& data, int from) final;
  Event send_recv(const ConstTensorView& outgoing, int to, const TensorView& incoming,
                  int from) final;
  Event barrier() final;
  std::unique_ptr<Communicator> split(int color, int key) override;
  Traffic traffic(Verb verb) const final;

 protected:
  struct Outgoing {
    int peer = 0;
    const char* data = nullptr;
    int64_t bytes = 0;
  };
  struct Incoming {
    int peer = 0;
    char* data = nullptr;
    int64_t bytes = 0;
  };

  struct Mode {
    // Ranks compare what they are about to do before every collective, so that a difference is an
    // error everywhere instead of a wait without end.
    bool check_calls = false;
    // No memory is read or written, only counted; views may hold null (PlannedCommunicator).
    bool planned = false;
  };
  HostCommunicator(int rank, int size, const Mode& mode)
      : rank_(rank),
        size_(size),
        check_calls_(mode.check_calls),
        planned_(mode.planned),
        arguments_(rank, size, Device::Kind::cpu, mode.planned) {}

  // Runs the job after all earlier ones of this rank.
  virtual Event enqueue(std::function<void()> job) = 0;
  // Called in a job. Returns when all of it is done. Peers are other ranks, each of them once at
  // most in a list; bytes are positive.
  // Messages between two ranks are matched in order; `tag` and size must then be equal, else
  // throws.
  virtual void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                        uint32_t tag) = 0;
  // Collective, after the ranks agreed: the group of `members` (ranks of this one, in order), of
  // which this rank is number `index`; no members: this rank is in no group.
  virtual std::unique_ptr<Communicator> make_group(int color, const std::vector<int>& members,
                                                   int index) = 0;

  // Throws if a message is not the one that was expected.
  void check_message(const Incoming& wanted, int64_t bytes, uint32_t tag_wanted,
                     uint32_t tag) const;

  // For destructors of the implementations: verbs that have not ended refer to this object.
  bool in_flight() const { return in_flight_ > 0; }

 private:
  struct Call;
  struct Moves;

  Event post(const Call& call, std::function<void(const Call&)> body);
  // Null in a planned group.
  char* memory(const TensorView& view) const;
  const char* memory(const ConstTensorView& view) const;
  void agree(const Call& call);
  void move(const Call& call, const Moves& moves);
  void reduce_slices(const Call& call, const char* whole, char* part);
  void gather_slices(const Call& call, const char* part, char* whole);
  void spread(const Call& call, char* data);
  void scatter_counted(const Call& call, const char* outgoing,
                       const std::vector<int64_t>& outgoing_counts, char* incoming,
                       const std::vector<int64_t>& incoming_counts);
  void agree_on_counts(const Call& call, const std::vector<int64_t>& outgoing,
                       const std::vector<int64_t>& incoming);
  std::vector<int64_t> share(const std::vector<int64_t>& mine, uint32_t tag);

  int rank_;
  int size_;
  bool check_calls_;
  bool planned_;
  VerbArguments arguments_;
  uint32_t num_collectives_ = 0;
  std::atomic<int> in_flight_ = 0;
  std::vector<char> scratch_;
  mutable std::mutex traffic_mutex_;
  std::array<Traffic, kNumVerbs> traffic_;
};

}  // namespace sluice
