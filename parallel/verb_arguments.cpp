#include "parallel/verb_arguments.h"

#include <algorithm>
#include <numeric>

namespace sluice {

void VerbArguments::buffer(Verb verb, const ConstTensorView& view) const {
  SLUICE_CHECK(bool(view) && view.packed() && (planned_ || view.device.kind == memory_),
               name_of(verb), " takes a packed view of ",
               memory_ == Device::Kind::cpu ? "host" : "device", " memory, got ",
               to_string(view.dims), " with row stride ", view.row_stride);
  SLUICE_CHECK(planned_ || view.data != nullptr || view.numel() == 0, name_of(verb), " of ",
               to_string(view.dims), " without data");
}

void VerbArguments::same_dtype(Verb verb, const ConstTensorView& a,
                               const ConstTensorView& b) const {
  SLUICE_CHECK(a.dtype == b.dtype, name_of(verb), " of one dtype, got ", name_of(a.dtype), " and ",
               name_of(b.dtype));
}

// What is sent must not change under way. `allowed` is where the two may coincide, if anywhere.
void VerbArguments::apart(Verb verb, const ConstTensorView& sent, const ConstTensorView& received,
                          const void* allowed) const {
  if (sent.data == nullptr || received.data == nullptr) return;
  const char* a = static_cast<const char*>(sent.data);
  const char* b = static_cast<const char*>(received.data);
  const bool overlap = a < b + bytes_of(received) && b < a + bytes_of(sent);
  const char* inner = bytes_of(sent) < bytes_of(received) ? a : b;
  SLUICE_CHECK(!overlap || (allowed != nullptr && inner == allowed), name_of(verb),
               " into memory that it sends from");
}

const void* VerbArguments::own_place(const ConstTensorView& whole) const {
  if (whole.data == nullptr) return nullptr;
  const Slice own = slice_of(whole.numel(), size_, rank_);
  return static_cast<const char*>(whole.data) + own.begin * int64_t(size_of(whole.dtype));
}

void VerbArguments::counts(const char* what, std::span<const int64_t> counts, int64_t room) const {
  SLUICE_CHECK(int(counts.size()) == size_, "all_to_all_v: one ", what, " count a rank (", size_,
               "), got ", counts.size());
  SLUICE_CHECK(std::all_of(counts.begin(), counts.end(), [](int64_t count) { return count >= 0; }),
               "all_to_all_v: a negative ", what, " count");
  const int64_t sum = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  SLUICE_CHECK(sum == room, "all_to_all_v: ", what, " counts sum to ", sum, ", the view holds ",
               room);
}

void VerbArguments::broadcast(const TensorView& data, int root) const {
  buffer(Verb::broadcast, data);
  SLUICE_CHECK(root >= 0 && root < size_, "broadcast from rank ", root, " in a group of ", size_);
}

void VerbArguments::all_reduce(const TensorView& data) const { buffer(Verb::all_reduce, data); }

void VerbArguments::all_gather(const ConstTensorView& part, const TensorView& whole) const {
  buffer(Verb::all_gather, part);
  buffer(Verb::all_gather, whole);
  same_dtype(Verb::all_gather, part, whole);
  const int64_t own = slice_of(whole.numel(), size_, rank_).size();
  SLUICE_CHECK(part.numel() == own, "all_gather of ", whole.numel(), " elements over ", size_,
               " ranks takes ", own, " from rank ", rank_, ", got ", part.numel());
  apart(Verb::all_gather, part, whole, own_place(whole));
}

void VerbArguments::reduce_scatter(const ConstTensorView& whole, const TensorView& part) const {
  buffer(Verb::reduce_scatter, whole);
  buffer(Verb::reduce_scatter, part);
  same_dtype(Verb::reduce_scatter, whole, part);
  const int64_t own = slice_of(whole.numel(), size_, rank_).size();
  SLUICE_CHECK(part.numel() == own, "reduce_scatter of ", whole.numel(), " elements over ", size_,
               " ranks leaves ", own, " on rank ", rank_, ", got room for ", part.numel());
  apart(Verb::reduce_scatter, whole, part, own_place(whole));
}

void VerbArguments::all_to_all_v(const ConstTensorView& outgoing,
                                 std::span<const int64_t> outgoing_counts,
                                 const TensorView& incoming,
                                 std::span<const int64_t> incoming_counts) const {
  buffer(Verb::all_to_all_v, outgoing);
  buffer(Verb::all_to_all_v, incoming);
  same_dtype(Verb::all_to_all_v, outgoing, incoming);
  counts("outgoing", outgoing_counts, outgoing.numel());
  counts("incoming", incoming_counts, incoming.numel());
  SLUICE_CHECK(outgoing_counts[rank_] == incoming_counts[rank_], "all_to_all_v: rank ", rank_,
               " sends itself ", outgoing_counts[rank_], " elements and expects ",
               incoming_counts[rank_]);
  apart(Verb::all_to_all_v, outgoing, incoming, nullptr);
}

void VerbArguments::send(int to) const {
  SLUICE_CHECK(to != rank_ && to != kNoRank, "send to rank ", to, " from rank ", rank_);
}

void VerbArguments::recv(int from) const {
  SLUICE_CHECK(from != rank_ && from != kNoRank, "recv from rank ", from, " on rank ", rank_);
}

void VerbArguments::send_recv(const ConstTensorView& outgoing, int to, const TensorView& incoming,
                              int from) const {
  for (const int peer : {to, from}) {
    SLUICE_CHECK(peer == kNoRank || (peer >= 0 && peer < size_), "peer ", peer, " in a group of ",
                 size_);
  }
  SLUICE_CHECK((to == rank_) == (from == rank_),
               "send_recv with oneself on one side only waits for ever");
  if (to != kNoRank) buffer(Verb::point_to_point, outgoing);
  if (from != kNoRank) buffer(Verb::point_to_point, incoming);
  if (to == kNoRank || from == kNoRank) return;
  SLUICE_CHECK(to != rank_ || bytes_of(outgoing) == bytes_of(incoming),
               "send_recv with oneself of ", bytes_of(outgoing), " bytes into ",
               bytes_of(incoming));
  if (bytes_of(outgoing) > 0 && bytes_of(incoming) > 0)
    apart(Verb::point_to_point, outgoing, incoming, nullptr);
}

void VerbArguments::split(int color) const {
  SLUICE_CHECK(color >= 0 || color == kNoColor, "split into color ", color);
}

}  // namespace sluice
