// What the contract's suite cannot see through host memory: that verbs order streams, not the host,
// may be recorded in a graph, and end when they are given up.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/device_memory.h"
#include "kernels/core/host_copy.h"
#include "parallel/mesh.h"
#include "parallel/nccl_communicator.h"
#include "tests/parallel/nccl_ranks.h"

namespace sluice::test {
namespace {

constexpr int64_t kElements = 1 << 20;

class NcclStream : public testing::Test {
 protected:
  NcclStream()
      : device_(device_of_rank()),
        stream_(device_),
        storage_(2 * kElements * sizeof(double), device_),
        a_(storage_.data(), {kElements}, DType::f64, device_),
        b_(static_cast<double*>(storage_.data()) + kElements, {kElements}, DType::f64, device_) {
    if (started_world().comm->size() > 1) {
      comm_ = make_nccl_communicator(*started_world().comm,
                                     {.device = device_.index, .stream = stream_});
    }
  }
  void SetUp() override {
    if (!comm_) GTEST_SKIP() << "one rank";
  }
  double size() const { return comm_->size(); }
  void fill(const TensorView& view, double value) {
    const HostCopy host(view, stream_, HostCopy::Content::unread);
    std::fill_n(host.view().as<double>(), view.numel(), value);
    host.write_back();
  }
  void copy(const TensorView& from, const TensorView& to) {
    copy_bytes(to.data, device_, from.data, device_, kElements * sizeof(double), stream_);
  }
  void expect(const TensorView& view, double value) {
    EXPECT_EQ(to_host(view, stream_), std::vector<double>(view.numel(), value));
  }

  Device device_;
  OwnedStream stream_;
  Buffer storage_;
  TensorView a_, b_;
  std::unique_ptr<Communicator> comm_;
};

// Nothing here waits but the last line.
TEST_F(NcclStream, AVerbComesBetweenWhatWasGivenBeforeAndAfterIt) {
  fill(a_, 1);
  fill(b_, 3);
  for (int round = 0; round < 20; ++round) {
    comm_->all_reduce(a_, ReduceOp::sum).order(stream_);
    copy(b_, a_);
    const auto group = comm_->split(0, comm_->rank());
    group->all_reduce(a_, ReduceOp::sum).order(stream_);
    copy(a_, b_);
    group->sync(stream_);
    fill(b_, 3);
  }
  expect(a_, 3 * size());
  comm_->shutdown();
}

TEST_F(NcclStream, AGraphHoldsVerbsOfSeveralGroups) {
  const auto group = comm_->split(0, comm_->rank());
  fill(a_, 1);
  fill(b_, 1);
  const auto step = [&] {
    const Event of_a = comm_->all_reduce(a_, ReduceOp::sum);
    const Event of_b = group->all_reduce(b_, ReduceOp::sum);
    const Slice own = slice_of(kElements, comm_->size(), comm_->rank());
    of_a.order(stream_);
    of_b.order(stream_);
    comm_->all_gather(b_.columns(own.begin, {own.size()}), a_).order(stream_);
  };
  step();  // the first verbs set themselves up
  {
    DeviceGraph graph;
    graph.capture(stream_, step);
    expect(b_, size());  // recorded, not run
    for (int i = 0; i < 3; ++i) graph.launch(stream_);
    comm_->sync(stream_);
    step();  // and beside the graph
    const double expected = size() * size() * size() * size() * size();
    expect(a_, expected);
    expect(b_, expected);
  }
  group->shutdown();
  comm_->shutdown();
}

TEST_F(NcclStream, AGroupThatIsGivenUpEndsItsKernelsAndThrows) {
  const auto group = comm_->split(0, comm_->rank());
  fill(a_, 1);
  Event never;
  if (comm_->rank() == 0) never = group->all_reduce(a_, ReduceOp::sum);
  group->abort(ExitCode::hang);
  Stream(stream_).sync();
  EXPECT_THROW(group->barrier(), Error);
  EXPECT_THROW(group->all_reduce(a_, ReduceOp::sum), Error);
  if (comm_->rank() == 0) {
    EXPECT_THROW(never.wait(), Error);
  }
  fill(a_, 2);
  comm_->all_reduce(a_, ReduceOp::sum).order(stream_);  // the others go on
  expect(a_, 2 * size());
  comm_->shutdown();
}

TEST_F(NcclStream, AMeshOfGpusHasGroupsOfItsMemory) {
  for (const MeshShape& shape : possible_meshes(comm_->size())) {
    Mesh mesh(*comm_, shape);
    for (const Axis axis : {Axis::dp, Axis::cp, Axis::ep, Axis::edp}) {
      Communicator& group = mesh.axis(axis);
      fill(a_, 1);
      group.all_reduce(a_, ReduceOp::sum).order(stream_);
      expect(a_, group.size());
    }
    mesh.shutdown();
  }
  comm_->shutdown();
}

}  // namespace
}  // namespace sluice::test
