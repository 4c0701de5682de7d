// The one driver of every linear recurrence whose rows are cut over sequence ranks.
//
// Over any span of tokens a linear recurrence maps its state affinely,
//   S_out = transition(S_in) + state
// and maps compose: so a rank folds its tokens into one map, all ranks learn each other's maps, and
// each applies those of the ranks before it to find the state that enters its own tokens. The
// backward is the same in reverse: a rank folds what its outputs give to the gradient of the
// entering state, all ranks learn each other's, and each applies the transposed transitions of the
// ranks after it, last rank first, to find the gradient of the state that leaves its own tokens.
// What travels has a fixed size: it does not grow with the tokens.
//
// How the exchange overlaps with local work: forward() and backward() enqueue one all-gather on the
// communicator's own thread (or stream), call `meanwhile`, and wait for the all-gather only then.
// The mixers give the work that neither reads nor feeds what travels: the projection of the gate in
// the forward; in the backward weight gradients, or what has to be computed again. So the exchange
// costs time only where it takes longer than that work.
#pragma once

#include <memory>

#include "layers/layer_build.h"
#include "layers/mixers/passed.h"
#include "parallel/sequence/state_exchange.h"

namespace sluice {

// The maps of consecutive ranks, as they lie in the gathered messages.
struct RankMaps {
  const Rows& rows;
  StateMessages messages = {};
  ConstTensorView transitions = {};  // (ranks, packed size), of all ranks
  int first = 0;                     // ranks [first, last)
  int last = 0;
};

// What a span of tokens does to the state before it: a mixer's own type. Transitions are not
// assumed to commute. Two operations of the algebra are not here because kernels have them fused:
// a rank's transition is composed where its chunks or tokens are folded (total_decay of
// state_passing_forward, dt_sum of selective_scan_fold), and its gradient is d(log decay) of
// state_passing_backward and selective_scan_backward. Between ranks neither is needed: maps are
// applied to a state one after another, and every rank finds the gradient of its own transitions.
class Transition {
 public:
  virtual ~Transition() = default;

  // The state of `rows` rows: (rows, ...).
  virtual Dims state_dims(int64_t rows) const = 0;
  // Elements that travel for `rows` rows; 0 if every rank knows the transition.
  virtual int64_t packed_size(int64_t rows) const = 0;
  // state = the maps applied to `state` (absent: 0), first rank first.
  virtual void apply(const Context& ctx, const RankMaps& maps, const ConstTensorView& initial,
                     const TensorView& state) const = 0;
  // gradient = that of the state that leaves the rank before `first`: the messages are the
  // gradients that the ranks found, which transposed transitions carry back, last rank first.
  virtual void apply_transpose(const Context& ctx, const RankMaps& maps,
                               const TensorView& gradient) const = 0;
};

// Transitions that multiply blocks of the state by one number each, exactly 0 where a document
// starts in the span. kernels/state_passing folds them. As it is, this is Mamba-2's: a block is a
// head's P * N numbers, and the decays themselves travel.
class BlockDecay : public Transition {
 public:
  BlockDecay(int64_t blocks, int64_t P, int64_t N) : blocks_(blocks), P_(P), N_(N) {}

  Dims state_dims(int64_t rows) const override { return {rows, blocks_, P_, N_}; }
  int64_t packed_size(int64_t rows) const override { return rows * blocks_; }
  void apply(const Context& ctx, const RankMaps& maps, const ConstTensorView& initial,
             const TensorView& state) const final;
  void apply_transpose(const Context& ctx, const RankMaps& maps,
                       const TensorView& gradient) const final;

 private:
  // From what travelled to the decays (last - first, rows * blocks). May take scratch.
  virtual ConstTensorView unpack(const Context&, const RankMaps& maps) const {
    return maps.transitions.row_range(maps.first, maps.last - maps.first);
  }
  ConstTensorView decays(const Context& ctx, const RankMaps& maps) const {
    return unpack(ctx, maps).reshape({1, maps.last - maps.first, maps.rows.rows * blocks_});
  }

  int64_t blocks_, P_, N_;
};

class LinearRecurrence {
 public:
  LinearRecurrence() = default;
  LinearRecurrence(const LayerBuild& build, std::unique_ptr<const Transition> transition);

  int ranks() const { return sequence_ ? sequence_->ranks() : 1; }
  // The entering state and, with several ranks, all transitions: the tensors of Passed.
  std::vector<StateTensor> received_spec(const Rows& rows) const;

  // From a zero state: what the rank's tokens add (in the shape of the state) and their transition
  // (1, packed size). Both are written.
  using Fold = std::function<void(const TensorView& state, const TensorView& transition)>;
  struct Forward {
    const Passed& passed;              // state and transitions are written unless filled
    const Carried* carried = nullptr;  // state tensor `kState` of each list
    Fold fold = {};
    Meanwhile meanwhile = {};
  };
  void forward(const Context& ctx, const Rows& rows, const Forward& args) const;
  // Where one rank has whole rows, the scan itself ends with the state to carry on: where it is to
  // be written. Otherwise without dims.
  TensorView final_state(const Carried* carried) const;

  // The gradient of the entering state that the rank's own outputs give, in the state's shape.
  using ReverseFold = std::function<void(const TensorView& dstate)>;
  // The gradient of the state that leaves this rank's tokens, in scratch; without dims where no
  // rank follows: what is carried to the next step has no gradient.
  TensorView backward(const Context& ctx, const Rows& rows, const Passed& passed,
                      const ReverseFold& reverse_fold, const Meanwhile& meanwhile) const;

  static constexpr size_t kState = 1;  // its place in state_spec of a mixer with a convolution

 private:
  DType dtype_ = DType::f32;  // of states
  bool carries_ = false;
  std::unique_ptr<const StateExchange> sequence_;  // with several ranks
  std::unique_ptr<const Transition> transition_;
};

}  // namespace sluice
