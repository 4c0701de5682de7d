#include "parallel/self_communicator.h"

#include "kernels/core/device_memory.h"
#include "parallel/host_communicator.h"
#include "parallel/verb_arguments.h"

namespace sluice {
namespace {

// All that a group of one does, it does at the call (HostCommunicator::post).
class SelfCommunicator final : public HostCommunicator {
 public:
  SelfCommunicator() : HostCommunicator(0, 1, {}) {}
  const char* name() const override { return "self"; }
  void abort(ExitCode) override {}
  void shutdown() override {}

 private:
  Event enqueue(std::function<void()>) override { fail(); }
  void exchange(std::span<const Outgoing>, std::span<const Incoming>, uint32_t) override { fail(); }
  std::unique_ptr<Communicator> make_group(int, const std::vector<int>& members, int) override {
    return members.empty() ? nullptr : make_self_communicator();
  }
  [[noreturn]] void fail() { throw Error(ExitCode::bug, "a group of one rank has no peers"); }
};

// What a stream was given so far.
class StreamCompletion final : public Completion {
 public:
  explicit StreamCompletion(const Stream& stream) : stream_(stream) {}

  void wait() const override { stream_.sync(); }
  bool done() const override {
    wait();
    return true;
  }
  void order(const Stream& stream) const override {
    if (stream.handle != stream_.handle) wait();
  }

 private:
  Stream stream_;
};

// One rank with a GPU. Its verbs are copies, in order with the work of its stream.
class DeviceSelfCommunicator final : public Communicator {
 public:
  explicit DeviceSelfCommunicator(const Place& place)
      : place_(place), arguments_(0, 1, place.device.kind) {}

  const char* name() const override { return "self"; }
  int rank() const override { return 0; }
  int size() const override { return 1; }

  Event broadcast(const TensorView& data, int root) override {
    arguments_.broadcast(data, root);
    return {};
  }
  Event all_reduce(const TensorView& data, ReduceOp) override {
    arguments_.all_reduce(data);
    return {};
  }
  Event all_gather(const ConstTensorView& part, const TensorView& whole) override {
    arguments_.all_gather(part, whole);
    return copy(part, whole);
  }
  Event reduce_scatter(const ConstTensorView& whole, const TensorView& part, ReduceOp) override {
    arguments_.reduce_scatter(whole, part);
    return copy(whole, part);
  }
  Event all_to_all_v(const ConstTensorView& outgoing, std::span<const int64_t> outgoing_counts,
                     const TensorView& incoming,
                     std::span<const int64_t> incoming_counts) override {
    arguments_.all_to_all_v(outgoing, outgoing_counts, incoming, incoming_counts);
    return copy(outgoing, incoming);
  }
  // These two throw: there is no peer.
  Event send(const ConstTensorView& data, int to) override {
    arguments_.send(to);
    return send_recv(data, to, {}, kNoRank);
  }
  Event recv(const TensorView& data, int from) override {
    arguments_.recv(from);
    return send_recv({}, kNoRank, data, from);
  }
  Event send_recv(const ConstTensorView& outgoing, int to, const TensorView& incoming,
                  int from) override {
    arguments_.send_recv(outgoing, to, incoming, from);
    return to == kNoRank ? Event{} : copy(outgoing, incoming);
  }
  Event barrier() override { return {}; }
  std::unique_ptr<Communicator> split(int color, int) override {
    arguments_.split(color);
    return color == kNoColor ? nullptr : make_self_communicator(place_);
  }
  void abort(ExitCode) override {}
  void shutdown() override {}
  Traffic traffic(Verb) const override { return {}; }

 private:
  Event copy(const ConstTensorView& from, const TensorView& to) const {
    if (from.data == to.data || bytes_of(from) == 0) return {};
    copy_bytes(to.data, place_.device, from.data, place_.device, bytes_of(from), place_.stream);
    return Event(std::make_shared<StreamCompletion>(place_.stream));
  }

  Place place_;
  VerbArguments arguments_;
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator(const Place& place) {
  if (place.device.is_cpu()) return make_self_communicator();
  return std::make_unique<DeviceSelfCommunicator>(place);
}

std::unique_ptr<Communicator> make_self_communicator() {
  return std::make_unique<SelfCommunicator>();
}

}  // namespace sluice
