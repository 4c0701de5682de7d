#include "parallel/planned_communicator.h"

#include "parallel/host_communicator.h"

namespace sluice {
namespace {

class PlannedCommunicator final : public HostCommunicator {
 public:
  PlannedCommunicator(int size, int rank) : HostCommunicator(rank, size, {.planned = true}) {}
  const char* name() const override { return "planned"; }
  std::unique_ptr<Communicator> split(int, int) override {
    throw Error(ExitCode::bug, "a planned group cannot be split: plan a mesh instead");
  }
  void abort(ExitCode) override {}
  void shutdown() override {}

 private:
  Event enqueue(std::function<void()> job) override {
    job();
    return {};
  }
  void exchange(std::span<const Outgoing>, std::span<const Incoming>, uint32_t) override {}
  std::unique_ptr<Communicator> make_group(int, const std::vector<int>&, int) override {
    return nullptr;  // split() never asks
  }
};

}  // namespace

std::unique_ptr<Communicator> make_planned_communicator(int size, int rank) {
  SLUICE_CHECK(rank >= 0 && rank < size, "rank ", rank, " of a group of ", size);
  return std::make_unique<PlannedCommunicator>(size, rank);
}

}  // namespace sluice
