// From queries, keys and values to y, where a row's tokens may lie on several ranks. Three ways:
//   here     this rank has whole rows
//   heads    heads are exchanged for tokens (all-to-all), attention runs on whole rows of some of
//            the heads, and its output goes back. Balances causal work.
//   keys     queries stay, keys and values come by on a ring, and partial results are merged. For
//            any number of heads; the last rank has up to (2c - 1) / c of the mean work.
// heads_divide says when the exchange of heads is possible; it is then taken.
//
// Hq query heads, Hkv key-value heads, hd head dim, c ranks, S tokens of a whole row.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/attention/attention.h"
#include "layers/layer.h"
#include "parallel/communicator.h"

namespace sluice {

struct AttentionShape {
  int64_t Hq = 0;
  int64_t Hkv = 0;
  int64_t hd = 0;
  int64_t window = 0;  // 0: unlimited
  AttentionBackend backend = AttentionBackend::own;

  // Columns of the projection qkv (..., (Hq + 2 Hkv) hd), or of its gradient.
  int64_t columns() const { return (Hq + 2 * Hkv) * hd; }
  template <class View>
  View q(const View& qkv) const {
    return qkv.columns(0, {Hq, hd});
  }
  template <class View>
  View k(const View& qkv) const {
    return qkv.columns(Hq * hd, {Hkv, hd});
  }
  template <class View>
  View v(const View& qkv) const {
    return qkv.columns((Hq + Hkv) * hd, {Hkv, hd});
  }
  template <class View>
  View kv(const View& qkv) const {
    return qkv.columns(Hq * hd, {2 * Hkv * hd});
  }
};

struct AttentionScoresBackward {
  ConstTensorView dy = {};   // (B, T, Hq, hd)
  ConstTensorView qkv = {};  // as in the forward, if keeps_projection()
  ConstTensorView y = {};    // (B, T, Hq, hd)
  TensorView dqkv = {};      // (B, T, (Hq + 2 Hkv) hd), overwritten
  // Work that needs none of this: run while the first exchange is under way.
  std::function<void()> meanwhile = [] {};
};

class AttentionScores {
 public:
  virtual ~AttentionScores() = default;

  // The forward's qkv must stay until the backward; else it may go after the forward.
  virtual bool keeps_projection() const = 0;
  // qkv (B, T, (Hq + 2 Hkv) hd), after the rotation -> y (B, T, Hq, hd).
  virtual std::unique_ptr<Saved> forward(const Context& ctx, const Rows& rows,
                                         const ConstTensorView& qkv, const TensorView& y) const = 0;
  virtual void backward(const Context& ctx, const Rows& rows, const AttentionScoresBackward& args,
                        const Saved& saved) const = 0;
  virtual std::string describe() const = 0;  // empty: nothing is exchanged
  // Of the operator, over rows of so many tokens (kernels/attention/attention.h).
  virtual std::string describe_kernels(Device device, DType dtype, int64_t rows,
                                       int64_t row_tokens) const = 0;
};

// Every rank gets Hq / c query heads and either Hkv / c key-value heads, or a copy of one.
bool heads_divide(const AttentionShape& shape, int ranks);

// The one to take for a group; null or of one rank: here.
std::unique_ptr<AttentionScores> make_attention_scores(const AttentionShape& shape,
                                                       Communicator* sequence);
std::unique_ptr<AttentionScores> attention_here(const AttentionShape& shape);
std::unique_ptr<AttentionScores> attention_by_heads(const AttentionShape& shape,
                                                    Communicator& sequence);
std::unique_ptr<AttentionScores> attention_by_keys(const AttentionShape& shape,
                                                   Communicator& sequence);

}  // namespace sluice
