// The last `width` inputs before some token, for a convolution whose rows are cut over sequence
// ranks: halo[j] is the input at position end - width + j of the row. It may reach over several
// left neighbours, so shards of one token are exact; positions before the row come from `before`,
// which a caller has where rows carry on earlier ones. The backward returns the halo's gradients to
// the ranks that own the inputs.
//
// Taps before a document's start are masked by whoever reads them, so what travels does not depend
// on documents.
// B batch, T tokens on this rank, C channels
#pragma once

#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/rows.h"
#include "parallel/communicator.h"

namespace sluice {

class HaloExchange {
 public:
  enum class End : uint8_t {
    shard_begin,  // every rank gets the inputs before its own first token
    row_end,      // all ranks get the last inputs of the row
  };

  // Null: one rank. The group outlives the exchange.
  HaloExchange(Communicator* group, int64_t width) : group_(group), width_(width) {}

  // What is under way. Its buffers lie in scratch, in the caller's scope.
  struct Ticket {
    End end = End::shard_begin;
    std::vector<int64_t> cuts;
    TensorView own;       // forward: the inputs; backward: their gradients
    TensorView incoming;  // (tokens received, C), by sender, then by row of the batch
    Event event;
  };

  Ticket begin(const Context& ctx, const Rows& rows, const TensorView& x, End end) const;
  // Writes halo (B, width, C). `before` (B, width, C) holds the inputs before the row; absent: 0.
  void finish(const Context& ctx, const Ticket& ticket, const ConstTensorView& before,
              const TensorView& halo) const;

  // Of End::shard_begin. Gradients of positions before the row go nowhere.
  Ticket begin_backward(const Context& ctx, const Rows& rows, const TensorView& dhalo,
                        const TensorView& dx) const;
  // Adds to dx (B, T, C) what the later ranks found, in their order.
  void finish_backward(const Context& ctx, const Ticket& ticket) const;

 private:
  int rank() const { return group_ == nullptr ? 0 : group_->rank(); }
  int ranks() const { return group_ == nullptr ? 1 : group_->size(); }
  // The positions that `owner` has of what `reader` reads.
  Slice piece(const std::vector<int64_t>& cuts, End end, int reader, int owner) const;
  int64_t window_begin(const std::vector<int64_t>& cuts, End end, int reader) const;
  void send(const Context& ctx, const TensorView& outgoing, const std::vector<int64_t>& tokens_to,
            const std::vector<int64_t>& tokens_from, int64_t channels, Ticket& ticket) const;

  Communicator* group_;
  int64_t width_;
};

}  // namespace sluice
