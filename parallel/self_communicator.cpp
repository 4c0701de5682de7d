#include "parallel/self_communicator.h"

#include "parallel/host_communicator.h"

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

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() {
  return std::make_unique<SelfCommunicator>();
}

}  // namespace sluice
