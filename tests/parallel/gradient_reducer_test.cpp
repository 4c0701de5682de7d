#include "parallel/gradient_reducer.h"

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "kernels/core/halving_tree.h"
#include "parallel/micro_batch_tree.h"
#include "parallel/self_communicator.h"
#include "tests/parallel/backends.h"
#include "tests/parallel/delayed_communicator.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

// Parameters of several sizes, one of them larger than a bucket, one empty, padding at the end.
const std::vector<int64_t> kStarts = {0, 700, 701, 901, 901, 950, 1100, 1164};
constexpr int64_t kElements = 1680;
const Dims kArena{kElements};
constexpr int64_t kBlock = 2;  // of it there are equally many for each of 1 to 8 ranks

GradientBuckets buckets_of(int64_t bucket_bytes, DType dtype = DType::f32) {
  return {.span = {0, kElements}, .block = kBlock, .dtype = dtype, .bucket_bytes = bucket_bytes};
}

TEST(GradientBuckets, AreCutFromTheEndIntoWholeBlocksOfEveryRank) {
  for (const int ranks : {1, 2, 3, 7, 8}) {
    const int64_t unit = kBlock * ranks;
    for (const int64_t elements : {1, 100, 128, 300, 1200, 5000}) {
      const std::vector<Slice> buckets = cut_buckets(
          {.span = {120, 120 + kElements}, .block = kBlock, .bucket_bytes = elements * 4}, ranks);
      int64_t end = 120 + kElements;
      for (const Slice& bucket : buckets) {
        EXPECT_EQ(bucket.end, end);
        EXPECT_EQ(bucket.size() % unit, 0);
        EXPECT_LE(bucket.size(), std::max(elements, unit));
        // Only the last is smaller than asked by a unit or more.
        EXPECT_TRUE(bucket.size() > elements - unit || bucket.begin == 120);
        end = bucket.begin;
      }
      EXPECT_EQ(end, 120);
      std::vector<int> owners(kElements, 0);
      for (int rank = 0; rank < ranks; ++rank) {
        for (const Slice& shard : cut_shards(buckets, ranks, rank)) {
          EXPECT_EQ((shard.begin - 120) % kBlock, 0);
          EXPECT_EQ(shard.size() % kBlock, 0);
          for (int64_t k = shard.begin; k < shard.end; ++k) ++owners[k - 120];
        }
      }
      EXPECT_EQ(owners, std::vector<int>(kElements, 1));
    }
  }
}

float gradient(int64_t micro_batch, int64_t element) {
  return float(random_normal({.seed = 5, .stream = uint64_t(micro_batch)}, uint64_t(element)));
}

float tree_sum(int64_t lo, int64_t hi, int64_t element) {
  if (hi - lo == 1) return gradient(lo, element);
  const int64_t middle = halving_middle(lo, hi);
  return tree_sum(lo, middle, element) + tree_sum(middle, hi, element);
}

// As the group sums, or in the order of the tree, with memory for that.
struct Order {
  bool in_tree = false;
  std::vector<float> memory = {};

  TensorView staging(Communicator& group, const GradientBuckets& layout) {
    if (!in_tree) return {};
    memory.resize(staged_elements(layout, group.size()));
    return TensorView(memory.data(), {int64_t(memory.size())});
  }
};

// A step of `per_rank` micro-batches on this rank: the last one's backward goes parameter by
// parameter from the end, and each is reported as it is done.
std::vector<float> step(Communicator& group, GradientReducer& reducer, int64_t per_rank) {
  TestContext ctx;
  const MicroBatchTree tree(per_rank);
  std::vector<std::vector<float>> memory(tree.buffers(), std::vector<float>(kElements));
  std::vector<TensorView> buffers;
  for (std::vector<float>& buffer : memory) buffers.push_back(TensorView(buffer.data(), kArena));
  reducer.begin(ctx, buffers[0]);
  for (int64_t i = 0; i < per_rank; ++i) {
    const MicroBatchTree::Leaf leaf = tree.leaf(i);
    int64_t end = kElements;
    for (auto start = kStarts.rbegin(); start != kStarts.rend(); ++start) {
      for (int64_t k = *start; k < end; ++k)
        memory[leaf.buffer][k] = gradient(group.rank() * per_rank + i, k);
      merge_leaf(ctx, leaf, buffers, *start, end);
      if (i + 1 == per_rank) reducer.ready(*start, end);
      end = *start;
    }
  }
  reducer.finish();
  return memory[0];
}

// Ranks as leaves, each the sum of its own block.
float sum_over_ranks(int64_t lo, int64_t hi, int64_t per_rank, int64_t element) {
  if (hi - lo == 1) return tree_sum(lo * per_rank, hi * per_rank, element);
  const int64_t middle = halving_middle(lo, hi);
  return sum_over_ranks(lo, middle, per_rank, element) +
         sum_over_ranks(middle, hi, per_rank, element);
}

class Reducer : public OnBackend {
 protected:
  // In both orders.
  void run(const std::function<void(Communicator&, Order&)>& body) {
    for (const bool in_tree : {false, true}) {
      in_tree_ = in_tree;
      OnBackend::run([&](Communicator& comm) {
        Order order{in_tree};
        body(comm, order);
      });
    }
  }
  // A sum over ranks: the bits of the tree, or in GPUs' memory the order that is theirs.
  void expect_sum(float sum, float expected) const {
    if (host_memory() || in_tree_) {
      ASSERT_EQ(sum, expected);
    } else {
      ASSERT_NEAR(sum, expected, 1e-5);
    }
  }

 private:
  bool in_tree_ = false;
};

TEST_P(Reducer, SumsInTheOrderOfTheTreeForEveryBucketSize) {
  run([&](Communicator& comm, Order& order) {
    const bool power_of_two = (comm.size() & (comm.size() - 1)) == 0;
    for (const int64_t bucket_bytes : {4, 800, 1200, 1 << 20}) {
      if (order.in_tree && bucket_bytes == 4) continue;  // hundreds of exchanges, one by one
      GradientReducer reducer(comm, buckets_of(bucket_bytes), Reduction::all_reduce,
                              order.staging(comm, buckets_of(bucket_bytes)));
      for (const int64_t per_rank : {1, 3, 8}) {
        const std::vector<float> sum = step(comm, reducer, per_rank);
        for (int64_t k = 0; k < kElements; ++k) {
          expect_sum(sum[k], sum_over_ranks(0, comm.size(), per_rank, k));
          // 1, 2, 4, 8 ranks: the bits of one rank.
          if (!power_of_two) continue;
          expect_sum(sum[k], tree_sum(0, comm.size() * per_rank, k));
        }
      }
    }
  });
}

TEST_P(Reducer, MayStopAtReduceScatter) {
  run([&](Communicator& comm, Order& order) {
    GradientReducer reducer(comm, buckets_of(1200), Reduction::reduce_scatter,
                            order.staging(comm, buckets_of(1200)));
    std::vector<float> sum = step(comm, reducer, 2);
    int64_t owned = 0;
    for (const Slice& shard : reducer.shards()) {
      owned += shard.size();
      for (int64_t k = shard.begin; k < shard.end; ++k)
        expect_sum(sum[k], sum_over_ranks(0, comm.size(), 2, k));
    }
    EXPECT_EQ(reduce_value(comm, owned, ReduceOp::sum), kElements);
    // And the other way round.
    for (size_t bucket = 0; bucket < reducer.buckets().size(); ++bucket)
      reducer.gather(bucket, TensorView(sum.data(), kArena)).wait();
    for (int64_t k = 0; k < kElements; ++k)
      expect_sum(sum[k], sum_over_ranks(0, comm.size(), 2, k));
  });
}

TEST_P(Reducer, PacksItsShardsInTheOrderOfTheArena) {
  run([&](Communicator& comm, Order& order) {
    TestContext ctx;
    for (const int64_t bucket_bytes : {800, 1 << 20}) {
      GradientReducer reducer(comm, buckets_of(bucket_bytes), Reduction::reduce_scatter,
                              order.staging(comm, buckets_of(bucket_bytes)));
      std::vector<float> flat(kElements), packed(kElements / comm.size(), -1);
      for (int64_t k = 0; k < kElements; ++k) flat[k] = gradient(comm.rank(), k);
      const std::vector<float> before = flat;
      reducer.begin(ctx, TensorView(flat.data(), kArena),
                    TensorView(packed.data(), {int64_t(packed.size())}));
      reducer.ready(0, kElements);
      reducer.finish();
      EXPECT_EQ(flat, before);
      std::vector<Slice> shards = reducer.shards();
      std::reverse(shards.begin(), shards.end());
      size_t at = 0;
      for (const Slice& shard : shards) {
        for (int64_t k = shard.begin; k < shard.end; ++k)
          expect_sum(packed[at++], sum_over_ranks(0, comm.size(), 1, k));
      }
      EXPECT_EQ(at, packed.size());
    }
  });
}

// Experts that got no token, say: their bucket is zero on some ranks and not on others.
TEST_P(Reducer, ABucketWithoutGradientOnSomeRanksIsSummedToo) {
  run([](Communicator& comm, Order& order) {
    GradientReducer reducer(comm, buckets_of(800), Reduction::all_reduce,
                            order.staging(comm, buckets_of(800)));
    TestContext ctx;
    const std::vector<Slice>& buckets = reducer.buckets();
    std::vector<float> flat(kElements, 0), expected(kElements);
    for (size_t i = 0; i < buckets.size(); ++i) {
      const int owner = int(i) % comm.size();
      for (int64_t k = buckets[i].begin; k < buckets[i].end; ++k) {
        expected[k] = gradient(owner, k);
        if (comm.rank() == owner) flat[k] = expected[k];
      }
    }
    reducer.begin(ctx, TensorView(flat.data(), kArena));
    reducer.ready(0, kElements);
    reducer.finish();
    EXPECT_EQ(flat, expected);
  });
}

// Counts verbs as they begin and end, and holds them while closed, but not for ever: who waits for
// what the gate holds shall fail, not hang.
class Gate {
 public:
  explicit Gate(bool open) : open_(open) {}
  void open() {
    change([&] { open_ = true; });
  }
  void enter() {
    change([&] { ++begun_; });
    wait([&] { return open_; });
  }
  void leave() {
    change([&] { ++ended_; });
  }
  bool wait_begun(int count) {
    return wait([&] { return begun_ >= count; });
  }
  bool wait_ended(int count) {
    return wait([&] { return ended_ >= count; });
  }

 private:
  template <class Change>
  void change(Change&& change) {
    const std::lock_guard lock(mutex_);
    change();
    changed_.notify_all();
  }
  template <class Condition>
  bool wait(Condition&& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), condition);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_;
  int begun_ = 0;
  int ended_ = 0;
};

TEST_P(Reducer, ReducesFinishedBucketsWhileTheBackwardGoesOn) {
  OnBackend::run([](Communicator& comm) {
    Gate gate(true);
    DelayedCommunicator delayed(
        comm, [&](Verb) { gate.enter(); }, [&](Verb) { gate.leave(); });
    GradientReducer reducer(delayed, buckets_of(800));
    const std::vector<Slice>& buckets = reducer.buckets();
    ASSERT_GE(buckets.size(), 3u);
    std::vector<float> flat(kElements, 1);
    TestContext ctx;
    reducer.begin(ctx, TensorView(flat.data(), kArena));
    // The second one alone must wait for the first, so that all ranks keep one order.
    reducer.ready(buckets[1].begin, buckets[1].end);
    reducer.ready(buckets[0].begin, buckets[0].end);
    // Both end while the rest of the arena is still being written.
    EXPECT_TRUE(gate.wait_ended(2));
    EXPECT_EQ(flat[buckets[0].begin], float(comm.size()));
    EXPECT_EQ(flat[buckets[1].end - 1], float(comm.size()));
    for (int64_t k = 0; k < buckets[1].begin; ++k) flat[k] = 2;
    reducer.ready(0, buckets[1].begin);
    reducer.finish();
    for (int64_t k = 0; k < kElements; ++k)
      ASSERT_EQ(flat[k], float(comm.size()) * (k < buckets[1].begin ? 2 : 1));
  });
}

TEST_P(Reducer, ReadyDoesNotWaitForASlowReduction) {
  OnBackend::run([](Communicator& comm) {
    Gate gate(false);
    DelayedCommunicator delayed(
        comm, [&](Verb) { gate.enter(); }, [&](Verb) { gate.leave(); });
    GradientReducer reducer(delayed, buckets_of(800));
    std::vector<float> flat(kElements, 1);
    TestContext ctx;
    reducer.begin(ctx, TensorView(flat.data(), kArena));
    reducer.ready(700, kElements);
    EXPECT_TRUE(gate.wait_begun(1));  // before finish(), and held there
    reducer.ready(0, 700);            // returns although nothing has been reduced
    EXPECT_EQ(flat, std::vector<float>(kElements, 1));
    gate.open();
    reducer.finish();
    EXPECT_EQ(flat, std::vector<float>(kElements, float(comm.size())));
  });
}

INSTANTIATE_TEST_SUITE_P(Communicators, Reducer, testing::ValuesIn(backends()), backend_name);

TEST(GradientReducer, EveryElementIsReportedExactlyOnce) {
  const auto self = make_self_communicator();
  TestContext ctx;
  std::vector<float> flat(kElements);
  const TensorView view(flat.data(), kArena);
  GradientReducer twice(*self, buckets_of(400));
  twice.begin(ctx, view);
  twice.ready(100, 200);
  twice.ready(200, 300);
  EXPECT_THROW(twice.ready(150, 160), Error);
  EXPECT_THROW(twice.ready(299, 400), Error);
  EXPECT_THROW(twice.ready(0, 101), Error);
  EXPECT_THROW(twice.ready(0, kElements), Error);
  EXPECT_THROW(twice.ready(kElements - 1, kElements + 1), Error);
  twice.ready(300, kElements);
  // A parameter that got no gradient has to be reported too.
  try {
    twice.finish();
    ADD_FAILURE() << "elements 0 to 100 were not missed";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("element 0 of [0, 1680)"), std::string::npos)
        << error.what();
  }
  twice.ready(0, 100);
  twice.finish();
  twice.begin(ctx, view);  // and the next step starts afresh
  twice.ready(0, kElements);
  twice.finish();
}

TEST(GradientReducer, RefusesAnotherArenaOrOrder) {
  const auto self = make_self_communicator();
  TestContext ctx;
  std::vector<double> flat(kElements);
  GradientReducer reducer(*self, buckets_of(400));
  EXPECT_THROW(reducer.begin(ctx, TensorView(flat.data(), kArena)), Error);
  EXPECT_THROW(reducer.ready(0, 1), Error);
  EXPECT_THROW(reducer.finish(), Error);
  GradientBuckets layout = buckets_of(400);
  layout.span = {0, kElements + 1};
  EXPECT_THROW(GradientReducer(*self, layout), Error);
  layout = buckets_of(400, DType::bf16);
  EXPECT_THROW(GradientReducer(*self, layout), Error);
  std::vector<float> packed(kElements);
  const TensorView too_few(packed.data(), {kElements - 1});
  const auto with_memory = [&] {
    GradientReducer(*self, buckets_of(400), Reduction::all_reduce, too_few);
  };
  EXPECT_THROW(with_memory(), Error);
  GradientReducer scatters(*self, buckets_of(400), Reduction::reduce_scatter);
  EXPECT_THROW(scatters.begin(ctx, TensorView(packed.data(), kArena), too_few), Error);
}

}  // namespace
}  // namespace sluice::test
