// What a rank checks of a verb's arguments at the call, the same in every implementation. A check
// throws Error(bug).
#pragma once

#include <span>

#include "parallel/communicator.h"

namespace sluice {

inline int64_t bytes_of(const ConstTensorView& view) {
  return view.numel() * int64_t(size_of(view.dtype));
}

class VerbArguments {
 public:
  // `planned`: views may hold null.
  VerbArguments(int rank, int size, Device::Kind memory, bool planned = false)
      : rank_(rank), size_(size), memory_(memory), planned_(planned) {}

  void broadcast(const TensorView& data, int root) const;
  void all_reduce(const TensorView& data) const;
  void all_gather(const ConstTensorView& part, const TensorView& whole) const;
  void reduce_scatter(const ConstTensorView& whole, const TensorView& part) const;
  void all_to_all_v(const ConstTensorView& outgoing, std::span<const int64_t> outgoing_counts,
                    const TensorView& incoming, std::span<const int64_t> incoming_counts) const;
  void send(int to) const;
  void recv(int from) const;
  void send_recv(const ConstTensorView& outgoing, int to, const TensorView& incoming,
                 int from) const;
  void split(int color) const;

 private:
  void buffer(Verb verb, const ConstTensorView& view) const;
  void same_dtype(Verb verb, const ConstTensorView& a, const ConstTensorView& b) const;
  void apart(Verb verb, const ConstTensorView& sent, const ConstTensorView& received,
             const void* allowed) const;
  void counts(const char* what, std::span<const int64_t> counts, int64_t room) const;
  const void* own_place(const ConstTensorView& whole) const;

  int rank_;
  int size_;
  Device::Kind memory_;
  bool planned_;
};

}  // namespace sluice
