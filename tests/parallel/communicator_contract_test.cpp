// The contract of parallel/communicator.h, on every implementation present.
#include <chrono>
#include <cmath>
#include <numeric>
#include <thread>

#include "kernels/core/halving_tree.h"
#include "parallel/communicator.h"
#include "parallel/planned_communicator.h"
#include "tests/parallel/backends.h"
#include "tests/parallel/values.h"

namespace sluice::test {
namespace {

// None, one, fewer than ranks, odd; as many bytes as the lowered message limit of the mpi runs, one
// more, and many times as many.
constexpr int64_t kSizes[] = {0, 1, 5, 64, 1000, 1001};

class Contract : public OnBackend {
 protected:
  // The body for every dtype and size, on every rank of the world and, for some of them, of two
  // groups that hold every other rank of it in reverse.
  void for_all(const std::function<void(Communicator&, DType, int64_t)>& body) {
    run([&](Communicator& comm) {
      const auto traced = [&](Communicator& group, DType dtype, int64_t count) {
        SCOPED_TRACE(concat(name_of(dtype), " x ", count, " on rank ", group.rank(), " of ",
                            group.size(), " in a world of ", comm.size()));
        body(group, dtype, count);
      };
      for (const DType dtype : kAllDTypes) {
        for (const int64_t count : kSizes) traced(comm, dtype, count);
      }
      const auto half = comm.split(comm.rank() % 2, -comm.rank());
      for (const DType dtype : {DType::f32, DType::u8}) {
        for (const int64_t count : {5, 1001}) traced(*half, dtype, count);
      }
    });
  }
};

double reduced(ReduceOp op, int size, int64_t index) {
  double result = small(0, index);
  for (int rank = 1; rank < size; ++rank) {
    const double value = small(rank, index);
    result = op == ReduceOp::sum ? result + value : std::max(result, value);
  }
  return result;
}

// Compares element by element; one failure per vector is enough to read.
template <class Expected>
void expect_values(const Values& got, Expected&& expected) {
  for (int64_t i = 0; i < got.count(); ++i) {
    ASSERT_EQ(got.get(i), expected(i)) << "element " << i;
  }
}

TEST_P(Contract, Broadcast) {
  for_all([](Communicator& comm, DType dtype, int64_t count) {
    for (int root = 0; root < comm.size(); ++root) {
      Values data(dtype, count);
      if (comm.rank() == root) data.fill([&](int64_t i) { return small(root, i); });
      comm.broadcast(data.view(), root).wait();
      expect_values(data, [&](int64_t i) { return small(root, i); });
    }
  });
}

TEST_P(Contract, AllReduce) {
  for_all([&](Communicator& comm, DType dtype, int64_t count) {
    if (dtype == DType::u16 && !host_memory()) return;
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
      Values data(dtype, count);
      data.fill([&](int64_t i) { return small(comm.rank(), i); });
      comm.all_reduce(data.view(), op).wait();
      expect_values(data, [&](int64_t i) { return reduced(op, comm.size(), i); });
    }
  });
}

TEST_P(Contract, AllGather) {
  for_all([](Communicator& comm, DType dtype, int64_t count) {
    const Slice own = slice_of(count, comm.size(), comm.rank());
    const auto expected = [&](int64_t i) { return small(3, i); };
    Values part(dtype, own.size()), whole(dtype, count), in_place(dtype, count);
    part.fill([&](int64_t i) { return expected(own.begin + i); });
    comm.all_gather(part.view(), whole.view()).wait();
    expect_values(whole, expected);
    for (int64_t i = own.begin; i < own.end; ++i) in_place.set(i, expected(i));
    comm.all_gather(in_place.view(own.begin, own.end), in_place.view()).wait();
    expect_values(in_place, expected);
  });
}

TEST_P(Contract, ReduceScatter) {
  for_all([&](Communicator& comm, DType dtype, int64_t count) {
    if (dtype == DType::u16 && !host_memory()) return;
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
      const Slice own = slice_of(count, comm.size(), comm.rank());
      Values whole(dtype, count), part(dtype, own.size());
      whole.fill([&](int64_t i) { return small(comm.rank(), i); });
      comm.reduce_scatter(whole.view(), part.view(), op).wait();
      expect_values(part, [&](int64_t i) { return reduced(op, comm.size(), own.begin + i); });
      expect_values(whole, [&](int64_t i) { return small(comm.rank(), i); });
      comm.reduce_scatter(whole.view(), whole.view(own.begin, own.end), op).wait();
      expect_values(whole, [&](int64_t i) {
        const bool mine = i >= own.begin && i < own.end;
        return mine ? reduced(op, comm.size(), i) : small(comm.rank(), i);
      });
    }
  });
}

TEST_P(Contract, AllToAllV) {
  for_all([](Communicator& comm, DType dtype, int64_t count) {
    // Uneven, and nothing at all between some.
    const auto elements = [&](int from, int to) { return (2 * from + 3 * to) % 4 * count / 4; };
    const auto value = [](int from, int to, int64_t i) { return small(8 * from + to, i); };
    std::vector<int64_t> outgoing_counts, incoming_counts;
    int64_t out_total = 0, in_total = 0;
    for (int peer = 0; peer < comm.size(); ++peer) {
      outgoing_counts.push_back(elements(comm.rank(), peer));
      incoming_counts.push_back(elements(peer, comm.rank()));
      out_total += outgoing_counts.back();
      in_total += incoming_counts.back();
    }
    Values outgoing(dtype, out_total), incoming(dtype, in_total);
    int64_t at = 0;
    for (int peer = 0; peer < comm.size(); ++peer) {
      for (int64_t i = 0; i < outgoing_counts[peer]; ++i)
        outgoing.set(at++, value(comm.rank(), peer, i));
    }
    comm.all_to_all_v(outgoing.view(), outgoing_counts, incoming.view(), incoming_counts).wait();
    at = 0;
    for (int peer = 0; peer < comm.size(); ++peer) {
      for (int64_t i = 0; i < incoming_counts[peer]; ++i)
        ASSERT_EQ(incoming.get(at++), value(peer, comm.rank(), i)) << "from " << peer;
    }
  });
}

TEST_P(Contract, SendRecvAroundRings) {
  for_all([](Communicator& comm, DType dtype, int64_t count) {
    for (int reach = 0; reach < comm.size(); ++reach) {
      const int to = (comm.rank() + reach) % comm.size();
      const int from = (comm.rank() + comm.size() - reach) % comm.size();
      Values outgoing(dtype, count), incoming(dtype, count);
      outgoing.fill([&](int64_t i) { return small(comm.rank(), i); });
      comm.send_recv(outgoing.view(), to, incoming.view(), from).wait();
      expect_values(incoming, [&](int64_t i) { return small(from, i); });
    }
  });
}

TEST_P(Contract, SendRecvAlongAChain) {
  for_all([](Communicator& comm, DType dtype, int64_t count) {
    const int to = comm.rank() + 1 < comm.size() ? comm.rank() + 1 : kNoRank;
    const int from = comm.rank() - 1;  // kNoRank on the first
    Values outgoing(dtype, count), incoming(dtype, count);
    outgoing.fill([&](int64_t i) { return small(comm.rank(), i); });
    comm.send_recv(outgoing.view(), to, incoming.view(), from).wait();
    expect_values(incoming, [&](int64_t i) { return from == kNoRank ? 99 : small(from, i); });
  });
}

TEST_P(Contract, SendAndRecvKeepTheirOrder) {
  for_all([](Communicator& comm, DType dtype, int64_t count) {
    // From everyone to rank 0, three messages each.
    for (int message = 0; message < 3; ++message) {
      Values data(dtype, count);
      if (comm.rank() != 0) {
        data.fill([&](int64_t i) { return small(8 * message + comm.rank(), i); });
        comm.send(data.view(), 0).wait();
        continue;
      }
      for (int from = comm.size() - 1; from > 0; --from) {
        comm.recv(data.view(), from).wait();
        expect_values(data, [&](int64_t i) { return small(8 * message + from, i); });
      }
    }
  });
}

TEST_P(Contract, NobodyLeavesABarrierBeforeTheLastHasCome) {
  run([](Communicator& comm) {
    const auto now = [] {
      const auto time = std::chrono::steady_clock::now().time_since_epoch();
      return int64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
    };
    for (int late = 0; late < comm.size(); ++late) {
      if (comm.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const int64_t came = now();
      comm.barrier().wait();
      const int64_t left = now();
      const int64_t last_came = reduce_value(comm, came, ReduceOp::max);
      const int64_t first_left = -reduce_value(comm, -left, ReduceOp::max);
      EXPECT_LE(last_came, first_left);
    }
  });
}

// The definition of the order of sums, as plain recursion.
template <class T>
T tree_sum(const std::function<T(int64_t)>& leaf, int64_t lo, int64_t hi) {
  if (hi - lo == 1) return leaf(lo);
  const int64_t middle = halving_middle(lo, hi);
  return tree_sum<T>(leaf, lo, middle) + tree_sum<T>(leaf, middle, hi);
}

template <class T>
T noise(int64_t rank, int64_t index) {
  return T(random_normal({.seed = 3, .stream = uint64_t(rank)}, uint64_t(index)));
}

TEST_P(Contract, SumsFollowTheHalvingTreeBitForBit) {
  if (!host_memory()) GTEST_SKIP();
  run([](Communicator& comm) {
    const auto check = [&]<class T>(T, int64_t count) {
      std::vector<T> data(count), whole(count), gathered(count);
      for (int64_t i = 0; i < count; ++i) data[i] = whole[i] = noise<T>(comm.rank(), i);
      const Slice own = slice_of(count, comm.size(), comm.rank());
      std::vector<T> part(own.size() + 1);
      comm.all_reduce(TensorView(data.data(), {count}), ReduceOp::sum).wait();
      comm.reduce_scatter(TensorView(whole.data(), {count}), TensorView(part.data(), {own.size()}),
                          ReduceOp::sum)
          .wait();
      comm.all_gather(TensorView(part.data(), {own.size()}), TensorView(gathered.data(), {count}))
          .wait();
      EXPECT_TRUE(data == gathered);
      for (int64_t i = 0; i < count; ++i) {
        const T expected =
            tree_sum<T>([&](int64_t rank) { return noise<T>(rank, i); }, 0, comm.size());
        ASSERT_EQ(data[i], expected) << "element " << i;
      }
    };
    check(float{}, 5003);
    check(double{}, 5003);
  });
}

// More than the scratch memory of a reduction holds: several rounds.
TEST_P(Contract, LongReductions) {
  run([](Communicator& comm) {
    const int64_t count = 1'200'007;
    std::vector<double> data(count);
    for (int64_t i = 0; i < count; ++i) data[i] = double(i % 1009) + comm.rank();
    comm.all_reduce(TensorView(data.data(), {count}), ReduceOp::sum).wait();
    const int n = comm.size();
    for (int64_t i = 0; i < count; ++i)
      ASSERT_EQ(data[i], n * double(i % 1009) + n * (n - 1) / 2) << "element " << i;
  });
}

TEST_P(Contract, Bf16IsSummedInF32AndRoundedOnce) {
  if (!host_memory()) GTEST_SKIP();
  run([](Communicator& comm) {
    // 256 + 1 + 1 + ...: in bf16 (8 bits) every 1 would be lost.
    bf16 value(comm.rank() == 0 ? 256 : 1);
    comm.all_reduce(TensorView(&value, {1}), ReduceOp::sum).wait();
    const int exact = 256 + comm.size() - 1;
    const int rounded = exact % 2 == 0 ? exact : (exact % 4 == 1 ? exact - 1 : exact + 1);
    EXPECT_EQ(float(value), float(rounded));
  });
}

TEST_P(Contract, ANaNWinsEveryMax) {
  if (!host_memory()) GTEST_SKIP();
  run([](Communicator& comm) {
    for (int which = 0; which < comm.size(); ++which) {
      const float value = comm.rank() == which ? std::nanf("") : float(comm.rank());
      EXPECT_TRUE(std::isnan(reduce_value(comm, value, ReduceOp::max)));
    }
  });
}

TEST_P(Contract, VerbsMayBeEnqueuedWithoutWaiting) {
  run([](Communicator& comm) {
    const int verbs = 24;
    std::vector<Values> data(verbs, Values(DType::f32, 100));
    std::vector<Event> events;
    for (int k = 0; k < verbs; ++k) {
      data[k].fill([&](int64_t i) { return small(comm.rank(), i + k); });
      events.push_back(comm.all_reduce(data[k].view(), ReduceOp::sum));
    }
    for (const Event& event : events) event.wait();
    for (int k = 0; k < verbs; ++k) {
      EXPECT_TRUE(events[k].done());
      expect_values(data[k], [&](int64_t i) { return reduced(ReduceOp::sum, comm.size(), i + k); });
    }
  });
}

TEST_P(Contract, SplitIntoOddAndEvenInReverse) {
  run([](Communicator& comm) {
    const auto half = comm.split(comm.rank() % 2, -comm.rank());
    const int expected_size = (comm.size() + 1 - comm.rank() % 2) / 2;
    ASSERT_EQ(half->size(), expected_size);
    ASSERT_EQ(half->rank(), expected_size - 1 - comm.rank() / 2);
    // The number of everybody's world rank, in the group's order.
    std::vector<int32_t> ranks(half->size());
    int32_t own = comm.rank();
    half->all_gather(TensorView(&own, {1}), TensorView(ranks.data(), {half->size()})).wait();
    for (int i = 0; i < half->size(); ++i)
      EXPECT_EQ(ranks[i], 2 * (half->size() - 1 - i) + comm.rank() % 2);
    // Groups and their parent in turn, none waited for at once.
    int64_t a = comm.rank(), b = comm.rank(), c = comm.rank();
    const Event first = half->all_reduce(TensorView(&a, {1}), ReduceOp::sum);
    const Event second = comm.all_reduce(TensorView(&b, {1}), ReduceOp::sum);
    const Event third = half->broadcast(TensorView(&c, {1}), half->size() - 1);
    third.wait(), second.wait(), first.wait();
    int64_t group_sum = 0;
    for (int rank = comm.rank() % 2; rank < comm.size(); rank += 2) group_sum += rank;
    EXPECT_EQ(a, group_sum);
    EXPECT_EQ(b, comm.size() * (comm.size() - 1) / 2);
    EXPECT_EQ(c, comm.rank() % 2);
  });
}

TEST_P(Contract, SplitOfASplitAndWithoutAColor) {
  run([](Communicator& comm) {
    const auto rest = comm.split(comm.rank() == 0 ? kNoColor : 5, 0);
    EXPECT_EQ(rest == nullptr, comm.rank() == 0);
    if (rest == nullptr) return;
    EXPECT_EQ(rest->rank(), comm.rank() - 1);
    const auto alone = rest->split(rest->rank(), 0);
    EXPECT_EQ(alone->size(), 1);
    const auto again = rest->split(0, -rest->rank());
    EXPECT_EQ(again->rank(), rest->size() - 1 - rest->rank());
    EXPECT_EQ(reduce_value(*again, int64_t{1}, ReduceOp::sum), comm.size() - 1);
    EXPECT_EQ(reduce_value(*alone, int64_t{7}, ReduceOp::sum), 7);
  });
}

TEST_P(Contract, CountsBytesPerVerb) {
  run([](Communicator& comm) {
    const auto group = comm.split(0, comm.rank());
    const int64_t n = group->size();
    const int64_t width = 4;
    std::vector<float> whole(10 * n), part(10), more(10 * n);
    const TensorView all(whole.data(), {10 * n});
    const TensorView own(part.data(), {10});
    group->all_gather(own, all).wait();
    group->reduce_scatter(all, own, ReduceOp::sum).wait();
    group->all_reduce(all, ReduceOp::sum).wait();
    group->all_reduce(all, ReduceOp::max).wait();
    group->broadcast(own, 0).wait();
    const std::vector<int64_t> counts(n, 10);
    group->all_to_all_v(all, counts, TensorView(more.data(), {10 * n}), counts).wait();
    const int next = int((group->rank() + 1) % n);
    const int previous = int((group->rank() + n - 1) % n);
    group->send_recv(own, next, TensorView(more.data(), {10}), previous).wait();
    const int64_t one = n == 1 ? 0 : 10 * width;  // a slice
    const int64_t others = 10 * width * (n - 1);
    const int64_t calls = n == 1 ? 0 : 1;
    EXPECT_EQ(group->traffic(Verb::all_gather), (Traffic{calls, one, others, others}));
    EXPECT_EQ(group->traffic(Verb::reduce_scatter), (Traffic{calls, others, others, others}));
    EXPECT_EQ(group->traffic(Verb::all_reduce),
              (Traffic{2 * calls, 2 * n * one, 4 * others, 4 * others}));
    EXPECT_EQ(group->traffic(Verb::all_to_all_v), (Traffic{calls, others, others, others}));
    EXPECT_EQ(group->traffic(Verb::point_to_point), (Traffic{calls, one, one, one}));
    const Traffic broadcast = group->traffic(Verb::broadcast);
    EXPECT_EQ(broadcast.contributed, group->rank() == 0 ? one : 0);
    EXPECT_EQ(broadcast.received, group->rank() == 0 ? 0 : one);
    EXPECT_EQ(reduce_value(comm, broadcast.sent, ReduceOp::sum), others);
  });
}

// One of each verb, from and to memory that need not be there.
void call_every_verb(Communicator& group, const std::function<TensorView(int64_t)>& view) {
  const int n = group.size();
  const int64_t count = 10 * n + 3;  // uneven slices
  const Slice own = slice_of(count, n, group.rank());
  group.broadcast(view(count), n - 1).wait();
  group.broadcast(view(7), n / 2).wait();
  group.all_reduce(view(count), ReduceOp::sum).wait();
  group.all_reduce(view(1), ReduceOp::max).wait();
  group.all_gather(view(own.size()), view(count)).wait();
  group.reduce_scatter(view(count), view(own.size()), ReduceOp::sum).wait();
  std::vector<int64_t> outgoing, incoming;
  for (int peer = 0; peer < n; ++peer) {
    outgoing.push_back((group.rank() + 2 * peer) % 3);
    incoming.push_back((peer + 2 * group.rank()) % 3);
  }
  const auto sum = [](const std::vector<int64_t>& counts) {
    return std::accumulate(counts.begin(), counts.end(), int64_t{0});
  };
  group.all_to_all_v(view(sum(outgoing)), outgoing, view(sum(incoming)), incoming).wait();
  const int next = group.rank() + 1 < n ? group.rank() + 1 : kNoRank;
  group.send_recv(view(5), next, view(5), group.rank() - 1).wait();
  group.barrier().wait();
}

TEST_P(Contract, PlannedGroupsCountWhatRealOnesMove) {
  run([&](Communicator& comm) {
    for (const DType dtype : kAllDTypes) {
      if (dtype == DType::u16 && !host_memory()) continue;
      const auto real = comm.split(0, comm.rank());
      const auto planned = make_planned_communicator(comm.size(), comm.rank());
      std::vector<Values> kept;
      kept.reserve(100);
      call_every_verb(*real, [&](int64_t count) { return kept.emplace_back(dtype, count).view(); });
      call_every_verb(*planned, [&](int64_t count) { return TensorView(nullptr, {count}, dtype); });
      for (int verb = 0; verb < kNumVerbs; ++verb) {
        EXPECT_EQ(planned->traffic(Verb(verb)), real->traffic(Verb(verb)))
            << name_of(Verb(verb)) << " of " << name_of(dtype) << " on rank " << comm.rank();
      }
    }
  });
}

TEST(PlannedCommunicator, TouchesNoMemoryAndIsDoneAtOnce) {
  const auto planned = make_planned_communicator(3, 1);
  std::vector<float> data = {1, 2, 3};
  const TensorView view(data.data(), {3});
  EXPECT_TRUE(planned->all_reduce(view, ReduceOp::sum).done());
  EXPECT_TRUE(planned->broadcast(view, 0).done());
  EXPECT_EQ(reduce_value(*planned, 5.0, ReduceOp::sum), 5.0);
  EXPECT_EQ(data, (std::vector<float>{1, 2, 3}));
  EXPECT_THROW(planned->all_gather(view, view), Error);
  EXPECT_THROW(planned->split(0, 0), Error);
  EXPECT_THROW(make_planned_communicator(3, 3), Error);
}

// What one group waits for does not hold up another: here it waits for the other.
TEST_P(Contract, GroupsGoOnBesideEachOther) {
  run([](Communicator& comm) {
    if (comm.size() == 1) return;
    const auto slow = comm.split(0, comm.rank());
    const auto fast = comm.split(0, -comm.rank());
    std::vector<double> bucket(5000, 1.0);
    const TensorView view(bucket.data(), {5000});
    // Rank 0 asks the slow group first, the others only after the fast group has answered.
    Event reduced;
    if (comm.rank() == 0) reduced = slow->all_reduce(view, ReduceOp::sum);
    EXPECT_EQ(reduce_value(*fast, int64_t{1}, ReduceOp::sum), comm.size());
    if (comm.rank() != 0) reduced = slow->all_reduce(view, ReduceOp::sum);
    reduced.wait();
    EXPECT_EQ(bucket, std::vector<double>(5000, comm.size()));
  });
}

// What is sent and what is received lie apart.
void expect_overlaps_refused(Communicator& comm, Values& data) {
  const int n = comm.size();
  const int next = (comm.rank() + 1) % n, previous = (comm.rank() + n - 1) % n;
  EXPECT_THROW(comm.send_recv(data.view(0, 6), next, data.view(5, 11), previous), Error);
  const std::vector<int64_t> all_mine = [&] {
    std::vector<int64_t> counts(n, 0);
    counts[comm.rank()] = 6;
    return counts;
  }();
  EXPECT_THROW(comm.all_to_all_v(data.view(0, 6), all_mine, data.view(5, 11), all_mine), Error);
  if (n > 1) {  // a part in the whole, but not at its place
    const int64_t begin = comm.rank() == 0 ? 1 : 0;
    const TensorView part = data.view(begin, begin + slice_of(12, n, comm.rank()).size());
    EXPECT_THROW(comm.all_gather(part, data.view()), Error);
    EXPECT_THROW(comm.reduce_scatter(data.view(), part, ReduceOp::sum), Error);
  }
}

TEST_P(Contract, WrongArgumentsThrowAtTheCall) {
  run([&](Communicator& comm) {
    Values data(DType::f32, 12), other(DType::f64, 12), little(DType::f32, 0);
    TensorView strided = data.view().reshape({3, 4});
    strided.row_stride = 5;
    strided.dims = {2, 4};
    const int n = comm.size();
    EXPECT_THROW(comm.broadcast(data.view(), n), Error);
    EXPECT_THROW(comm.broadcast(data.view(), -1), Error);
    EXPECT_THROW(comm.all_reduce(strided, ReduceOp::sum), Error);
    EXPECT_THROW(comm.all_reduce({}, ReduceOp::sum), Error);
    EXPECT_THROW(comm.all_gather(data.view(0, 12 - 12 / n + 1), data.view()), Error);
    EXPECT_THROW(comm.all_gather(data.view(0, 12 / n), other.view()), Error);
    EXPECT_THROW(comm.reduce_scatter(data.view(), little.view(), ReduceOp::sum), Error);
    const std::vector<int64_t> too_few(n - 1, 0), too_many_elements(n, 13);
    EXPECT_THROW(comm.all_to_all_v(data.view(), too_few, data.view(), too_few), Error);
    EXPECT_THROW(comm.all_to_all_v(data.view(), too_many_elements, data.view(), too_many_elements),
                 Error);
    EXPECT_THROW(comm.send(data.view(), comm.rank()), Error);
    EXPECT_THROW(comm.recv(data.view(), n), Error);
    EXPECT_THROW(comm.send_recv(data.view(), comm.rank(), data.view(), kNoRank), Error);
    EXPECT_THROW(comm.split(-2, 0), Error);
    if (host_memory()) expect_overlaps_refused(comm, data);
    // Nothing of this was sent: the communicator still works.
    EXPECT_EQ(reduce_value(comm, int64_t{1}, ReduceOp::sum), n);
  });
}

// Ranks that call different things get the same error everywhere, and may go on.
TEST_P(Contract, DisagreeingRanksAreToldSo) {
  if (!host_memory()) GTEST_SKIP();
  run([](Communicator& comm) {
    if (comm.size() == 1) return;
    const bool last = comm.rank() == comm.size() - 1;
    Values data(DType::f32, 8), wide(DType::f64, 8);
    const auto refused = [&](const char* what, const Event& event, const std::string& word) {
      try {
        event.wait();
        ADD_FAILURE() << what << " was not noticed on rank " << comm.rank();
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
      }
    };
    refused("size", comm.all_reduce(data.view(0, last ? 7 : 8), ReduceOp::sum), "of 7 f32");
    refused("nothing", comm.broadcast(data.view(0, last ? 0 : 8), 0), "of 0 f32");
    refused("dtype", comm.all_reduce(last ? wide.view() : data.view(), ReduceOp::sum), "f64");
    refused("op", comm.all_reduce(data.view(), last ? ReduceOp::max : ReduceOp::sum), "(max)");
    refused("root", comm.broadcast(data.view(), last ? 1 : 0), "from rank 1");
    refused("verb", last ? comm.barrier() : comm.broadcast(data.view(), 0), "barrier");
    std::vector<int64_t> counts(comm.size(), 0), wrong = counts;
    counts[0] = wrong[0] = 3;
    if (last) wrong[0] = 4;
    const int64_t room = comm.rank() == 0 ? 3 * comm.size() : 0;
    Values incoming(DType::f32, room);
    const std::vector<int64_t> expected(comm.size(), comm.rank() == 0 ? 3 : 0);
    refused("counts", comm.all_to_all_v(data.view(0, wrong[0]), wrong, incoming.view(), expected),
            "sends 4 elements to rank 0, which expects 3");
    EXPECT_EQ(reduce_value(comm, int64_t{1}, ReduceOp::sum), comm.size());
  });
}

// Point to point nobody compares beforehand: the receiver finds out, and the group is broken.
TEST_P(Contract, AMessageOfAnotherSizeIsRefusedByItsReceiver) {
  if (!host_memory()) GTEST_SKIP();
  using Elements = std::pair<int64_t, int64_t>;
  const Elements cases[] = {{3, 4}, {5, 4}, {900, 4}, {899, 900}, {901, 900}};
  for (const auto& [sent, expected] : cases) {
    const int64_t count = sent, wanted = expected;
    run([=](Communicator& comm) {
      if (comm.size() == 1) return;
      Values data(DType::f64, count), room(DType::f64, wanted);
      if (comm.rank() == 0) {
        const auto group = comm.split(0, 0);
        EXPECT_THROW(group->recv(room.view(), 1).wait(), Error);
        EXPECT_THROW(group->recv(room.view(), 1).wait(), Error);
        return;
      }
      try {  // the others may learn of it, wherever they are, or not
        const auto group = comm.split(0, comm.rank());
        if (comm.rank() == 1) group->send(data.view(), 0).wait();
      } catch (const Error&) {
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Communicators, Contract, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace sluice::test
