#include "parallel/host_communicator.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "parallel/ordered_reduce.h"

namespace sluice {
namespace {

// A reduction goes piece by piece, so that what the others send fits in this much memory.
constexpr int64_t kReduceScratchBytes = int64_t{8} << 20;

// Tags carry the verb and, for collectives, a running number: a rank that skipped a call is noticed
// at the next one. MPI promises tags up to 32767.
constexpr uint32_t kAgreement = 15;
constexpr uint32_t tag_of(uint32_t verb, uint32_t sequence) {
  return verb | (sequence % 2048) << 4;
}

// Addresses of a planned verb are null, wherever in its memory they point.
template <class Byte>
Byte* at(Byte* memory, int64_t offset) {
  return memory == nullptr ? nullptr : memory + offset;
}

void copy(char* to, const char* from, int64_t bytes) {
  if (bytes > 0 && to != from && to != nullptr && from != nullptr) std::memmove(to, from, bytes);
}

}  // namespace

struct HostCommunicator::Call {
  Verb verb = Verb::barrier;
  DType dtype = DType::u8;
  ReduceOp op = ReduceOp::sum;
  int root = 0;
  int64_t elements = 0;     // that all ranks must agree on
  int64_t contributed = 0;  // bytes, for the counters
  uint32_t tag = 0;

  int64_t element_bytes() const { return int64_t(size_of(dtype)); }
};

// What a verb wants to move; messages without bytes are dropped.
struct HostCommunicator::Moves {
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;

  void send(int to, const char* data, int64_t bytes) {
    if (bytes > 0) outgoing.push_back({to, data, bytes});
  }
  void receive(int from, char* data, int64_t bytes) {
    if (bytes > 0) incoming.push_back({from, data, bytes});
  }
};

Event HostCommunicator::post(const Call& asked, std::function<void(const Call&)> body) {
  const bool collective = asked.verb != Verb::point_to_point;
  Call call = asked;
  call.tag = tag_of(uint32_t(call.verb), collective ? num_collectives_++ : 0);
  if (size_ == 1) {
    body(call);
    return {};
  }
  {
    const std::lock_guard lock(traffic_mutex_);
    ++traffic_[int(call.verb)].calls;
    traffic_[int(call.verb)].contributed += call.contributed;
  }
  ++in_flight_;
  return enqueue([this, call, collective, body = std::move(body)] {
    struct Leaving {
      std::atomic<int>& count;
      ~Leaving() { --count; }
    } leaving{in_flight_};
    if (check_calls_ && collective) agree(call);
    body(call);
  });
}

void HostCommunicator::move(const Call& call, const Moves& moves) {
  if (moves.outgoing.empty() && moves.incoming.empty()) return;
  exchange(moves.outgoing, moves.incoming, call.tag);
  const std::lock_guard lock(traffic_mutex_);
  Traffic& traffic = traffic_[int(call.verb)];
  for (const Outgoing& message : moves.outgoing) traffic.sent += message.bytes;
  for (const Incoming& message : moves.incoming) traffic.received += message.bytes;
}

// Everybody's copy of `mine`, which has the same length everywhere. Not counted as traffic.
std::vector<int64_t> HostCommunicator::share(const std::vector<int64_t>& mine, uint32_t tag) {
  const int64_t count = int64_t(mine.size());
  const int64_t bytes = count * int64_t(sizeof(int64_t));
  std::vector<int64_t> all(count * size_);
  std::copy(mine.begin(), mine.end(), all.begin() + count * rank_);
  Moves moves;
  for (int step = 1; step < size_; ++step) {
    const int from = (rank_ + size_ - step) % size_;
    moves.send((rank_ + step) % size_, reinterpret_cast<const char*>(mine.data()), bytes);
    moves.receive(from, reinterpret_cast<char*>(all.data() + count * from), bytes);
  }
  exchange(moves.outgoing, moves.incoming, tag);
  return all;
}

void HostCommunicator::agree(const Call& call) {
  const auto describe = [](const int64_t* record) {
    const Verb verb = Verb(record[0]);
    const bool reduces = verb == Verb::all_reduce || verb == Verb::reduce_scatter;
    return concat(name_of(verb), reduces ? concat("(", name_of(ReduceOp(record[2])), ")") : "",
                  " of ", record[4], " ", name_of(DType(record[1])),
                  verb == Verb::broadcast ? concat(" from rank ", record[3]) : "");
  };
  const std::vector<int64_t> mine = {int64_t(call.verb), int64_t(call.dtype), int64_t(call.op),
                                     call.root, call.elements};
  const std::vector<int64_t> all = share(mine, tag_of(kAgreement, call.tag >> 4));
  const int64_t* first = all.data();
  for (int peer = 1; peer < size_; ++peer) {
    const int64_t* other = first + peer * mine.size();
    if (std::equal(first, first + mine.size(), other)) continue;
    throw Error(ExitCode::bug, concat("ranks disagree: rank 0 calls ", describe(first), ", rank ",
                                      peer, " calls ", describe(other)));
  }
}

char* HostCommunicator::memory(const TensorView& view) const {
  return planned_ ? nullptr : static_cast<char*>(view.data);
}

const char* HostCommunicator::memory(const ConstTensorView& view) const {
  return planned_ ? nullptr : static_cast<const char*>(view.data);
}

Event HostCommunicator::broadcast(const TensorView& data, int root) {
  arguments_.broadcast(data, root);
  const Call call{.verb = Verb::broadcast,
                  .dtype = data.dtype,
                  .root = root,
                  .elements = data.numel(),
                  .contributed = rank_ == root ? bytes_of(data) : 0};
  return post(call, [this, data](const Call& call) { spread(call, memory(data)); });
}

// A binomial tree: a rank at distance d from the root has the data from d minus its lowest set bit,
// and passes them on to d plus every lower power of two.
void HostCommunicator::spread(const Call& call, char* data) {
  const int64_t bytes = call.elements * call.element_bytes();
  const int distance = (rank_ - call.root + size_) % size_;
  int reach = 1;
  while (reach < size_ && (distance & reach) == 0) reach *= 2;
  if (distance != 0) {
    Moves from_parent;
    from_parent.receive((rank_ - reach + size_) % size_, data, bytes);
    move(call, from_parent);
  }
  Moves to_children;
  for (int step = reach / 2; step >= 1; step /= 2) {
    if (distance + step < size_) to_children.send((rank_ + step) % size_, data, bytes);
  }
  move(call, to_children);
}

Event HostCommunicator::all_reduce(const TensorView& data, ReduceOp op) {
  arguments_.all_reduce(data);
  const Call call{.verb = Verb::all_reduce,
                  .dtype = data.dtype,
                  .op = op,
                  .elements = data.numel(),
                  .contributed = bytes_of(data)};
  return post(call, [this, data](const Call& call) {
    char* whole = memory(data);
    char* part = at(whole, slice_of(call.elements, size_, rank_).begin * call.element_bytes());
    reduce_slices(call, whole, part);
    gather_slices(call, part, whole);
  });
}

Event HostCommunicator::reduce_scatter(const ConstTensorView& whole, const TensorView& part,
                                       ReduceOp op) {
  arguments_.reduce_scatter(whole, part);
  const Call call{.verb = Verb::reduce_scatter,
                  .dtype = whole.dtype,
                  .op = op,
                  .elements = whole.numel(),
                  .contributed = bytes_of(whole) - bytes_of(part)};
  return post(call, [this, whole, part](const Call& call) {
    reduce_slices(call, memory(whole), memory(part));
  });
}

// Everyone sends everyone its slice; the owner adds them up in order.
void HostCommunicator::reduce_slices(const Call& call, const char* whole, char* part) {
  const int64_t width = call.element_bytes();
  const Slice own = slice_of(call.elements, size_, rank_);
  if (size_ == 1) return copy(part, whole, own.size() * width);
  const int64_t piece = std::max<int64_t>(1, kReduceScratchBytes / (size_ * width));
  const int64_t longest = slice_of(call.elements, size_, 0).size();
  const auto cut = [&](const Slice& slice, int64_t offset) {
    return Slice{std::min(slice.end, slice.begin + offset),
                 std::min(slice.end, slice.begin + offset + piece)};
  };
  if (!planned_)
    scratch_.resize(std::max<size_t>(scratch_.size(), std::min(piece, longest) * size_ * width));
  for (int64_t offset = 0; offset < longest; offset += piece) {
    const Slice mine = cut(own, offset);
    std::vector<const void*> leaves(size_);
    leaves[rank_] = at(whole, mine.begin * width);
    Moves moves;
    for (int step = 1; step < size_; ++step) {
      const int to = (rank_ + step) % size_;
      const int from = (rank_ + size_ - step) % size_;
      const Slice theirs = cut(slice_of(call.elements, size_, to), offset);
      char* landing = planned_ ? nullptr : scratch_.data() + from * mine.size() * width;
      leaves[from] = landing;
      moves.send(to, at(whole, theirs.begin * width), theirs.size() * width);
      moves.receive(from, landing, mine.size() * width);
    }
    move(call, moves);
    if (mine.size() > 0 && !planned_)
      ordered_reduce(call.dtype, call.op, leaves, mine.size(), part + offset * width);
  }
}

Event HostCommunicator::all_gather(const ConstTensorView& part, const TensorView& whole) {
  arguments_.all_gather(part, whole);
  const Call call{.verb = Verb::all_gather,
                  .dtype = whole.dtype,
                  .elements = whole.numel(),
                  .contributed = bytes_of(part)};
  return post(call, [this, part, whole](const Call& call) {
    gather_slices(call, memory(part), memory(whole));
  });
}

void HostCommunicator::gather_slices(const Call& call, const char* part, char* whole) {
  const int64_t width = call.element_bytes();
  const Slice own = slice_of(call.elements, size_, rank_);
  copy(at(whole, own.begin * width), part, own.size() * width);
  Moves moves;
  for (int step = 1; step < size_; ++step) {
    const int from = (rank_ + size_ - step) % size_;
    const Slice theirs = slice_of(call.elements, size_, from);
    moves.send((rank_ + step) % size_, part, own.size() * width);
    moves.receive(from, at(whole, theirs.begin * width), theirs.size() * width);
  }
  move(call, moves);
}

Event HostCommunicator::all_to_all_v(const ConstTensorView& outgoing,
                                     std::span<const int64_t> outgoing_counts,
                                     const TensorView& incoming,
                                     std::span<const int64_t> incoming_counts) {
  arguments_.all_to_all_v(outgoing, outgoing_counts, incoming, incoming_counts);
  const int64_t width = int64_t(size_of(outgoing.dtype));
  const Call call{.verb = Verb::all_to_all_v,
                  .dtype = outgoing.dtype,
                  .contributed = (outgoing.numel() - outgoing_counts[rank_]) * width};
  // Copies, since the caller's spans need not live until the verb runs.
  std::vector<int64_t> to_send(outgoing_counts.begin(), outgoing_counts.end());
  std::vector<int64_t> to_receive(incoming_counts.begin(), incoming_counts.end());
  return post(call, [this, outgoing, incoming, to_send = std::move(to_send),
                     to_receive = std::move(to_receive)](const Call& call) {
    if (check_calls_ && size_ > 1) agree_on_counts(call, to_send, to_receive);
    scatter_counted(call, memory(outgoing), to_send, memory(incoming), to_receive);
  });
}

void HostCommunicator::agree_on_counts(const Call& call, const std::vector<int64_t>& outgoing,
                                       const std::vector<int64_t>& incoming) {
  std::vector<int64_t> mine = outgoing;
  mine.insert(mine.end(), incoming.begin(), incoming.end());
  const std::vector<int64_t> all = share(mine, tag_of(kAgreement, call.tag >> 4));
  for (int from = 0; from < size_; ++from) {
    for (int to = 0; to < size_; ++to) {
      const int64_t sent = all[2 * size_ * from + to];
      const int64_t expected = all[2 * size_ * to + size_ + from];
      if (sent == expected) continue;
      throw Error(ExitCode::bug, concat("all_to_all_v: rank ", from, " sends ", sent,
                                        " elements to rank ", to, ", which expects ", expected));
    }
  }
}

void HostCommunicator::scatter_counted(const Call& call, const char* outgoing,
                                       const std::vector<int64_t>& outgoing_counts, char* incoming,
                                       const std::vector<int64_t>& incoming_counts) {
  const int64_t width = call.element_bytes();
  std::vector<int64_t> out_begin(size_ + 1), in_begin(size_ + 1);
  std::partial_sum(outgoing_counts.begin(), outgoing_counts.end(), out_begin.begin() + 1);
  std::partial_sum(incoming_counts.begin(), incoming_counts.end(), in_begin.begin() + 1);
  copy(at(incoming, in_begin[rank_] * width), at(outgoing, out_begin[rank_] * width),
       outgoing_counts[rank_] * width);
  Moves moves;
  for (int step = 1; step < size_; ++step) {
    const int to = (rank_ + step) % size_;
    const int from = (rank_ + size_ - step) % size_;
    moves.send(to, at(outgoing, out_begin[to] * width), outgoing_counts[to] * width);
    moves.receive(from, at(incoming, in_begin[from] * width), incoming_counts[from] * width);
  }
  move(call, moves);
}

Event HostCommunicator::send(const ConstTensorView& data, int to) {
  arguments_.send(to);
  return send_recv(data, to, {}, kNoRank);
}

Event HostCommunicator::recv(const TensorView& data, int from) {
  arguments_.recv(from);
  return send_recv({}, kNoRank, data, from);
}

Event HostCommunicator::send_recv(const ConstTensorView& outgoing, int to,
                                  const TensorView& incoming, int from) {
  arguments_.send_recv(outgoing, to, incoming, from);
  const int64_t out_bytes = to == kNoRank ? 0 : bytes_of(outgoing);
  const int64_t in_bytes = from == kNoRank ? 0 : bytes_of(incoming);
  const Call call{.verb = Verb::point_to_point, .contributed = to == rank_ ? 0 : out_bytes};
  return post(call, [this, outgoing, to, out_bytes, incoming, from, in_bytes](const Call& call) {
    if (to == rank_) return copy(memory(incoming), memory(outgoing), in_bytes);
    Moves moves;
    moves.send(to, memory(outgoing), out_bytes);
    moves.receive(from, memory(incoming), in_bytes);
    move(call, moves);
  });
}

// Round k passes a token 2^k ranks on; after ceil(log2 n) rounds everyone has heard of everyone.
Event HostCommunicator::barrier() {
  return post({.verb = Verb::barrier}, [this](const Call& call) {
    for (int reach = 1; reach < size_; reach *= 2) {
      const char token = 0;
      char heard = 0;
      const Outgoing outgoing{(rank_ + reach) % size_, &token, 1};
      const Incoming incoming{(rank_ + size_ - reach) % size_, &heard, 1};
      exchange({&outgoing, 1}, {&incoming, 1}, call.tag);
    }
  });
}

std::unique_ptr<Communicator> HostCommunicator::split(int color, int key) {
  arguments_.split(color);
  std::array<int64_t, 2> mine = {color, key};
  std::vector<int64_t> all(2 * size_);
  all_gather(TensorView(mine.data(), {2}), TensorView(all.data(), {2 * size_})).wait();
  std::vector<int> members;
  for (int peer = 0; peer < size_; ++peer) {
    if (color != kNoColor && all[2 * peer] == color) members.push_back(peer);
  }
  std::stable_sort(members.begin(), members.end(),
                   [&](int a, int b) { return all[2 * a + 1] < all[2 * b + 1]; });
  const auto self = std::find(members.begin(), members.end(), rank_);
  return make_group(color, members, int(self - members.begin()));
}

void HostCommunicator::check_message(const Incoming& wanted, int64_t bytes, uint32_t tag_wanted,
                                     uint32_t tag) const {
  if (bytes == wanted.bytes && tag == tag_wanted) return;
  const auto describe = [](uint32_t tag) {
    return (tag & 15) == kAgreement ? "comparison of calls" : name_of(Verb(tag & 15));
  };
  throw Error(ExitCode::bug,
              concat("rank ", rank_, " waits in ", describe(tag_wanted), " number ",
                     tag_wanted >> 4, " for ", wanted.bytes, " bytes from rank ", wanted.peer,
                     ", which sends ", bytes, " in ", describe(tag), " number ", tag >> 4));
}

Traffic HostCommunicator::traffic(Verb verb) const {
  const std::lock_guard lock(traffic_mutex_);
  return traffic_[int(verb)];
}

}  // namespace sluice
