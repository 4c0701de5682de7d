// B batch, T tokens on this rank, S tokens of a whole row
#include "layers/mixers/attention_scores.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "parallel/sequence/heads_exchange.h"
#include "parallel/sequence/kv_exchange.h"

namespace sluice {
namespace {

// What a backward reads of a forward whose queries did not move.
struct LseTape : Saved {
  TensorView lse;  // (B, T, Hq)
};

std::unique_ptr<LseTape> new_lse_tape(const Context& ctx, const TensorView& y) {
  auto tape = std::make_unique<LseTape>();
  tape->lse = ctx.saved->alloc({y.dim(0), y.dim(1), y.dim(2)}, stat_dtype(y.dtype));
  return tape;
}

AttentionForward forward_args(const AttentionShape& shape, const ConstTensorView& qkv,
                              const ConstTensorView& doc_begin, const TensorView& y,
                              const TensorView& lse) {
  return {.q = shape.q(qkv),
          .k = shape.k(qkv),
          .v = shape.v(qkv),
          .doc_begin = doc_begin,
          .y = y,
          .lse = lse,
          .window = shape.window,
          .backend = shape.backend};
}

AttentionBackward backward_args(const AttentionShape& shape, const AttentionScoresBackward& args,
                                const ConstTensorView& doc_begin, const ConstTensorView& lse) {
  return {.dy = args.dy,
          .q = shape.q(args.qkv),
          .k = shape.k(args.qkv),
          .v = shape.v(args.qkv),
          .doc_begin = doc_begin,
          .y = args.y,
          .lse = lse,
          .dq = shape.q(args.dqkv),
          .dk = shape.k(args.dqkv),
          .dv = shape.v(args.dqkv),
          .window = shape.window,
          .backend = shape.backend};
}

// Over B rows of T tokens on this rank.
std::string kernels_of(const AttentionShape& shape, Device device, DType dtype, int64_t B,
                       int64_t T) {
  const TensorView qkv(nullptr, {B, T, shape.columns()}, dtype, device);
  const TensorView y(nullptr, {B, T, shape.Hq, shape.hd}, dtype, device);
  const TensorView lse(nullptr, {B, T, shape.Hq}, stat_dtype(dtype), device);
  const TensorView doc_begin(nullptr, {B, T}, DType::i32, device);
  return sluice::describe_kernels(
      device, forward_args(shape, qkv, doc_begin, y, lse),
      backward_args(shape, {.dy = y, .qkv = qkv, .y = y, .dqkv = qkv}, doc_begin, lse));
}

class AttentionHere final : public AttentionScores {
 public:
  explicit AttentionHere(const AttentionShape& shape) : shape_(shape) {}

  bool keeps_projection() const override { return true; }
  std::string describe() const override { return ""; }
  std::string describe_kernels(Device device, DType dtype, int64_t rows,
                               int64_t row_tokens) const override {
    return kernels_of(shape_, device, dtype, rows, row_tokens);
  }

  std::unique_ptr<Saved> forward(const Context& ctx, const Rows& rows, const ConstTensorView& qkv,
                                 const TensorView& y) const override {
    auto saved = new_lse_tape(ctx, y);
    attention_forward(ctx, forward_args(shape_, qkv, rows.local_doc_begin, y, saved->lse));
    return saved;
  }

  void backward(const Context& ctx, const Rows& rows, const AttentionScoresBackward& args,
                const Saved& saved) const override {
    args.meanwhile();
    const auto& lse = static_cast<const LseTape&>(saved).lse;
    attention_backward(ctx, backward_args(shape_, args, rows.local_doc_begin, lse));
  }

 private:
  AttentionShape shape_;
};

// What one of c ranks has of the heads.
AttentionShape share_of(const AttentionShape& shape, int ranks) {
  return {.Hq = shape.Hq / ranks,
          .Hkv = std::max<int64_t>(1, shape.Hkv / ranks),
          .hd = shape.hd,
          .window = shape.window,
          .backend = shape.backend};
}

// Rank r's columns of q, k and v. With fewer key-value heads than ranks, r Hkv / c is the one that
// its queries read.
std::vector<std::vector<ColumnRange>> qkv_shares(const AttentionShape& shape, int ranks) {
  const AttentionShape share = share_of(shape, ranks);
  std::vector<std::vector<ColumnRange>> shares;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const int64_t kv_head = rank * shape.Hkv / ranks;
    shares.push_back({{rank * share.Hq * shape.hd, share.Hq * shape.hd},
                      {(shape.Hq + kv_head) * shape.hd, share.Hkv * shape.hd},
                      {(shape.Hq + shape.Hkv + kv_head) * shape.hd, share.Hkv * shape.hd}});
  }
  return shares;
}

std::vector<std::vector<ColumnRange>> y_shares(const AttentionShape& shape, int ranks) {
  const int64_t width = shape.Hq / ranks * shape.hd;
  std::vector<std::vector<ColumnRange>> shares;
  for (int64_t rank = 0; rank < ranks; ++rank) shares.push_back({{rank * width, width}});
  return shares;
}

class AttentionByHeads final : public AttentionScores {
 public:
  AttentionByHeads(const AttentionShape& shape, Communicator& sequence)
      : ranks_(sequence.size()),
        shape_(shape),
        share_(share_of(shape, ranks_)),
        qkv_exchange_(sequence, shape.columns(), qkv_shares(shape, ranks_)),
        y_exchange_(sequence, shape.Hq * shape.hd, y_shares(shape, ranks_)) {}

  bool keeps_projection() const override { return false; }
  std::string describe() const override {
    return fmt::format(
        "all-to-all over {} ranks, each with {} of {} query heads and {} of {} key-value heads",
        ranks_, share_.Hq, shape_.Hq, share_.Hkv, shape_.Hkv);
  }
  std::string describe_kernels(Device device, DType dtype, int64_t rows,
                               int64_t row_tokens) const override {
    return kernels_of(share_, device, dtype, rows, row_tokens);
  }

  std::unique_ptr<Saved> forward(const Context& ctx, const Rows& rows, const ConstTensorView& qkv,
                                 const TensorView& y) const override {
    const int64_t B = rows.rows, S = rows.row_tokens;
    auto saved = std::make_unique<Tape>();
    saved->qkv = ctx.saved->alloc({B, S, share_.columns()}, y.dtype);
    saved->y = ctx.saved->alloc({B, S, share_.Hq, share_.hd}, y.dtype);
    saved->lse = ctx.saved->alloc({B, S, share_.Hq}, stat_dtype(y.dtype));
    const ArenaScope scope(*ctx.scratch);
    const auto heads = qkv_exchange_.begin_to_columns(ctx, rows, qkv, saved->qkv);
    qkv_exchange_.finish_to_columns(ctx, rows, heads);
    attention_forward(ctx, forward_args(share_, saved->qkv, rows.doc_begin, saved->y, saved->lse));
    const auto tokens = y_exchange_.begin_to_tokens(ctx, rows, flat(saved->y), flat(y));
    y_exchange_.finish_to_tokens(ctx, rows, tokens);
    return saved;
  }

  void backward(const Context& ctx, const Rows& rows, const AttentionScoresBackward& args,
                const Saved& base) const override {
    const auto& saved = static_cast<const Tape&>(base);
    const ArenaScope scope(*ctx.scratch);
    const TensorView dy = ctx.scratch->alloc(saved.y.dims, saved.y.dtype);
    const TensorView dqkv = ctx.scratch->alloc(saved.qkv.dims, saved.qkv.dtype);
    const auto heads = y_exchange_.begin_to_columns(ctx, rows, flat(args.dy), flat(dy));
    args.meanwhile();
    y_exchange_.finish_to_columns(ctx, rows, heads);
    attention_backward(
        ctx, backward_args(share_, {.dy = dy, .qkv = saved.qkv, .y = saved.y, .dqkv = dqkv},
                           rows.doc_begin, saved.lse));
    const auto tokens = qkv_exchange_.begin_to_tokens(ctx, rows, dqkv, args.dqkv);
    qkv_exchange_.finish_to_tokens(ctx, rows, tokens);
  }

 private:
  // Of whole rows, for this rank's share of the heads.
  struct Tape : Saved {
    TensorView qkv;  // (B, S, (hq + 2 hkv) hd)
    TensorView y;    // (B, S, hq, hd)
    TensorView lse;  // (B, S, hq)
  };
  template <class View>
  static View flat(const View& heads) {
    return heads.reshape({heads.dim(0), heads.dim(1), heads.dim(2) * heads.dim(3)});
  }
  int ranks_;
  AttentionShape shape_, share_;
  HeadsExchange qkv_exchange_, y_exchange_;
};

class AttentionByKeys final : public AttentionScores {
 public:
  AttentionByKeys(const AttentionShape& shape, Communicator& sequence)
      : shape_(shape), sequence_(sequence) {}

  bool keeps_projection() const override { return true; }
  std::string describe() const override {
    return fmt::format(
        "keys and values on a ring over {} ranks, {} query and {} key-value heads on each",
        sequence_.size(), shape_.Hq, shape_.Hkv);
  }
  // Most blocks of keys are not those of the queries.
  std::string describe_kernels(Device device, DType dtype, int64_t rows,
                               int64_t row_tokens) const override {
    const std::string text = kernels_of(shape_, device, dtype, rows, row_tokens / sequence_.size());
    return text.empty() || shape_.backend == AttentionBackend::own
               ? text
               : text + "; for keys of other ranks our own kernels run";
  }

  std::unique_ptr<Saved> forward(const Context& ctx, const Rows& rows, const ConstTensorView& qkv,
                                 const TensorView& y) const override {
    auto saved = new_lse_tape(ctx, y);
    const ArenaScope scope(*ctx.scratch);
    const TensorView part_y = ctx.scratch->alloc(y.dims, y.dtype);
    const TensorView part_lse = ctx.scratch->alloc(saved->lse.dims, saved->lse.dtype);
    KvRing ring(ctx, sequence_, rows, shape_.window, shape_.kv(qkv));
    AttentionForward args = forward_args(shape_, qkv, rows.local_doc_begin, y, saved->lse);
    attention_forward(ctx, args);
    args.y = part_y;
    args.lse = part_lse;
    while (const KvBlock block = ring.next()) {
      args.k = keys_of(block.kv);
      args.v = values_of(block.kv);
      args.query_begin = rows.begin - block.keys.begin;
      attention_forward(ctx, args);
      attention_merge(ctx, {.part_y = part_y, .part_lse = part_lse, .y = y, .lse = saved->lse});
    }
    ring.finish();
    return saved;
  }

  void backward(const Context& ctx, const Rows& rows, const AttentionScoresBackward& args,
                const Saved& saved) const override {
    const ArenaScope scope(*ctx.scratch);
    KvRing ring(ctx, sequence_, rows, shape_.window, shape_.kv(args.qkv));
    KvReturn gradients(ctx, sequence_, rows, shape_.window, shape_.kv(args.dqkv));
    args.meanwhile();
    AttentionBackward block_args =
        backward_args(shape_, args, rows.local_doc_begin, static_cast<const LseTape&>(saved).lse);
    attention_backward(ctx, block_args);
    block_args.add_to_dq = true;
    for (int step = 1; step <= gradients.steps(); ++step) {
      if (const KvBlock block = ring.next()) {
        const TensorView dkv = gradients.room(step);
        block_args.k = keys_of(block.kv);
        block_args.v = values_of(block.kv);
        block_args.dk = keys_of(dkv);
        block_args.dv = values_of(dkv);
        block_args.query_begin = rows.begin - block.keys.begin;
        attention_backward(ctx, block_args);
      }
      gradients.give(step);
    }
    gradients.finish();
    ring.finish();
  }

 private:
  TensorView keys_of(const TensorView& kv) const { return kv.columns(0, {shape_.Hkv, shape_.hd}); }
  TensorView values_of(const TensorView& kv) const {
    return kv.columns(shape_.Hkv * shape_.hd, {shape_.Hkv, shape_.hd});
  }
  AttentionShape shape_;
  Communicator& sequence_;
};

}  // namespace

bool heads_divide(const AttentionShape& shape, int ranks) {
  return shape.Hq % ranks == 0 && (shape.Hkv % ranks == 0 || ranks % shape.Hkv == 0);
}

std::unique_ptr<AttentionScores> attention_here(const AttentionShape& shape) {
  return std::make_unique<AttentionHere>(shape);
}

std::unique_ptr<AttentionScores> attention_by_heads(const AttentionShape& shape,
                                                    Communicator& sequence) {
  SLUICE_CHECK(heads_divide(shape, sequence.size()), shape.Hq, " query and ", shape.Hkv,
               " key-value heads do not divide over ", sequence.size(), " ranks");
  return std::make_unique<AttentionByHeads>(shape, sequence);
}

std::unique_ptr<AttentionScores> attention_by_keys(const AttentionShape& shape,
                                                   Communicator& sequence) {
  return std::make_unique<AttentionByKeys>(shape, sequence);
}

std::unique_ptr<AttentionScores> make_attention_scores(const AttentionShape& shape,
                                                       Communicator* sequence) {
  if (sequence == nullptr || sequence->size() == 1) return attention_here(shape);
  return heads_divide(shape, sequence->size()) ? attention_by_heads(shape, *sequence)
                                               : attention_by_keys(shape, *sequence);
}

}  // namespace sluice
