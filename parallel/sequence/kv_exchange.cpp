// B rows, T tokens on this rank, C elements of a token's keys and values
#include "parallel/sequence/kv_exchange.h"

#include <algorithm>

#include "kernels/elementwise/elementwise.h"

namespace sluice {
namespace {

// The front of a flat buffer.
TensorView front_of(const TensorView& flat, const Dims& dims) {
  return flat.columns(0, {dims.numel()}).reshape(dims);
}

}  // namespace

KvReach::KvReach(const Communicator& group, const Rows& rows, int64_t window)
    : window_(window), cuts_(rows.cuts) {
  SLUICE_CHECK(int(cuts_.size()) == group.size() + 1, "rows are cut for ", cuts_.size() - 1,
               " ranks, the group has ", group.size());
  SLUICE_CHECK(window >= 0, "window must not be negative, got ", window);
}

bool KvReach::sees(int rank, int owner) const {
  if (owner < 0 || owner >= rank || rank + 1 >= int(cuts_.size())) return false;
  return window_ == 0 || cuts_[rank] - window_ + 1 < cuts_[owner + 1];
}

Slice KvReach::travelling(int owner) const {
  const int64_t begin = cuts_[owner], end = cuts_[owner + 1];
  return {window_ == 0 ? begin : std::max(begin, end - window_ + 1), end};
}

int64_t KvReach::largest() const {
  int64_t largest = 0;
  for (int owner = 0; owner + 1 < int(cuts_.size()); ++owner) {
    largest = std::max(largest, travelling(owner).size());
  }
  return largest;
}

KvRing::KvRing(const Context& ctx, Communicator& group, const Rows& rows, int64_t window,
               const ConstTensorView& kv)
    : stream_(ctx.stream), group_(group), reach_(group, rows, window) {
  const auto [B, T, C] = kv.shape<3>("kv: (B, T, C)");
  expect("kv", kv, {rows.rows, rows.tokens, C}, kv.dtype, ctx.device);
  dims_ = {B, reach_.largest(), C};
  for (TensorView& buffer : buffers_) buffer = ctx.scratch->alloc({dims_.numel()}, kv.dtype);
  const int64_t count = reach_.travelling(group.rank()).size();
  if (reach_.sees(group.rank() + 1, group.rank())) {
    const TensorView own = room(0, group.rank());
    for (int64_t b = 0; b < B; ++b) {
      copy(ctx, kv.slice(b).row_range(T - count, count), own.slice(b));
    }
  }
  start();
}

TensorView KvRing::room(int buffer, int owner) const {
  return front_of(buffers_[buffer], {dims_[0], reach_.travelling(owner).size(), dims_[2]});
}

// Step s passes on the block that came in step s - 1 (at first: this rank's own).
void KvRing::start() {
  const int rank = group_.rank(), held = rank - step_ + 1, wanted = rank - step_;
  const bool sends = held >= 0 && reach_.sees(rank + 1, held);
  const bool receives = reach_.sees(rank, wanted);
  if (!sends && !receives) return;
  const int from_buffer = (step_ + 1) % 2, to_buffer = step_ % 2;
  event_ = group_.send_recv(
      sends ? room(from_buffer, held) : TensorView{}, sends ? rank + 1 : kNoRank,
      receives ? room(to_buffer, wanted) : TensorView{}, receives ? rank - 1 : kNoRank);
}

KvBlock KvRing::next() {
  event_.order(stream_);
  const int owner = group_.rank() - step_;
  if (!reach_.sees(group_.rank(), owner)) return {};
  const TensorView kv = room(step_ % 2, owner);
  ++step_;
  start();
  return {.owner = owner, .keys = reach_.travelling(owner), .kv = kv};
}

KvReturn::KvReturn(const Context& ctx, Communicator& group, const Rows& rows, int64_t window,
                   const TensorView& dkv)
    : ctx_(ctx), group_(group), reach_(group, rows, window), dkv_(dkv) {
  const int64_t C = dkv.shape<3>("dkv: (B, T, C)")[2];
  expect("dkv", dkv, {rows.rows, rows.tokens, C}, dkv.dtype, ctx.device);
  dims_ = {rows.rows, reach_.largest(), C};
  for (TensorView& buffer : leaving_) buffer = ctx.scratch->alloc({dims_.numel()}, dkv.dtype);
  arriving_ = ctx.scratch->alloc({dims_.numel()}, dkv.dtype);
  const int rank = group.rank();
  while (reach_.sees(rank, rank - steps_ - 1) || reach_.sees(rank + steps_ + 1, rank)) ++steps_;
}

TensorView KvReturn::room(int step) const {
  const Slice keys = reach_.travelling(group_.rank() - step);
  return front_of(leaving_[step % 2], {dims_[0], keys.size(), dims_[2]});
}

void KvReturn::give(int step) {
  finish();
  const int rank = group_.rank();
  const bool sends = reach_.sees(rank, rank - step);
  const bool receives = reach_.sees(rank + step, rank);
  if (!sends && !receives) return;
  const Dims own{dims_[0], reach_.travelling(rank).size(), dims_[2]};
  under_way_ = step;
  event_ = group_.send_recv(sends ? room(step) : TensorView{}, sends ? rank - step : kNoRank,
                            receives ? front_of(arriving_, own) : TensorView{},
                            receives ? rank + step : kNoRank);
}

void KvReturn::finish() {
  if (under_way_ == 0) return;
  event_.order(ctx_.stream);
  const int rank = group_.rank();
  if (reach_.sees(rank + under_way_, rank)) {
    const int64_t count = reach_.travelling(rank).size(), T = dkv_.dim(1);
    const TensorView arrived = front_of(arriving_, {dims_[0], count, dims_[2]});
    for (int64_t b = 0; b < dims_[0]; ++b) {
      add(ctx_, arrived.slice(b), dkv_.slice(b).row_range(T - count, count));
    }
  }
  under_way_ = 0;
}

}  // namespace sluice
