// Keys and values on a ring: the queries stay, and every rank's block of keys and values goes from
// rank to rank to the right, as far as queries see it. For attention whose heads do not divide by
// the number of ranks.
//
// What travels is known from the cuts and the window alone (documents only mask scores), so every
// step moves the same bytes and planning is exact. Of rank j's keys [cuts[j], cuts[j+1]) only those
// travel that the first query to the right of them sees:
//   n_j = cuts[j+1] - max(cuts[j], cuts[j+1] - window + 1),  the whole shard if window = 0
// and they travel to every rank r > j that sees one:
//   window = 0 or cuts[r] - window + 1 < cuts[j+1]
//
// With R_j the number of these ranks, rows of C elements of e bytes (C = 2 Hkv hd), B rows:
//   forward   rank r sends  B C e times the sum of n_j over the j <= r that rank r + 1 sees
//   backward  that again, and B C e times the sum of n_j over the j < r that rank r sees: the
//             gradients of the keys, straight to their owner
// so over all ranks B C e sum_j n_j R_j each. The owner adds gradients in the order of the ranks.
#pragma once

#include <array>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/rows.h"
#include "parallel/communicator.h"

namespace sluice {

// Which rank's queries see which rank's keys, as far as cuts and window tell.
class KvReach {
 public:
  KvReach(const Communicator& group, const Rows& rows, int64_t window);

  bool sees(int rank, int owner) const;  // false for ranks out of range
  Slice travelling(int owner) const;     // keys of `owner`, by their position in the row
  // Tokens of the largest block that travels.
  int64_t largest() const;

 private:
  int64_t window_;
  std::vector<int64_t> cuts_;
};

// Keys and values of another rank, valid until the ring is asked for the next. They
// lie before this rank's queries.
struct KvBlock {
  int owner = 0;
  Slice keys;     // their positions in the row
  TensorView kv;  // (B, keys, C)

  explicit operator bool() const { return bool(kv); }
};

// One walk of the blocks, nearest first. While a block is worked on it travels on, and the next one
// arrives. Buffers lie in ctx.scratch from the constructor on, and are released after finish().
class KvRing {
 public:
  // kv (B, T, C): this rank's; it is copied. Starts sending.
  KvRing(const Context& ctx, Communicator& group, const Rows& rows, int64_t window,
         const ConstTensorView& kv);

  // The block of the next rank to the left, for what the stream does from now on; none when no more
  // is seen.
  KvBlock next();
  // The last block has been passed on. After the last next().
  void finish() { event_.order(stream_); }

 private:
  void start();  // the transfer of step_
  TensorView room(int buffer, int owner) const;

  Stream stream_;
  Communicator& group_;
  KvReach reach_;
  Dims dims_;                          // (B, most tokens, C)
  std::array<TensorView, 2> buffers_;  // (B * most tokens * C): held, and arriving
  int step_ = 1;                       // blocks come from rank - step_
  Event event_;
};

// The way back: gradients of the keys and values of others go to their owners, those of this rank's
// are added to its own. Step s serves the block of rank - s. Per step
//   fill room(s) if there is one (after next() has returned that block), then give(s)
// for s = 1 ... steps(), whether or not there was a block; then finish(). The gradients of a step
// travel while the next step's are computed.
class KvReturn {
 public:
  // dkv (B, T, C): this rank's own share, added to by give() and finish().
  KvReturn(const Context& ctx, Communicator& group, const Rows& rows, int64_t window,
           const TensorView& dkv);

  int steps() const { return steps_; }
  TensorView room(int step) const;  // (B, keys of the block, C), overwrite it
  void give(int step);
  void finish();

 private:
  const Context& ctx_;
  Communicator& group_;
  KvReach reach_;
  TensorView dkv_;
  Dims dims_;                          // (B, most tokens, C)
  std::array<TensorView, 2> leaving_;  // by turns: one is filled while the other is sent
  TensorView arriving_;
  int steps_ = 0;
  int under_way_ = 0;  // the step whose gradients are in flight; 0: none
  Event event_;
};

}  // namespace sluice
