#include "trainer/evaluation.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <vector>

namespace sluice {

namespace {

// Of one micro-batch on one rank.
struct Part {
  double loss = 0;
  double targets = 0;
};

// Rows [first, first + rows) if there are that many, on this rank.
Part evaluate_part(const Context& ctx, const Model& model, EvalRows& rows, const Mesh& mesh,
                   int64_t first, int64_t count) {
  const Batch batch = rows.batch(first, count, {mesh.at().cp, mesh.shape().cp});
  return {.loss = model.evaluate(
              ctx, {.tokens = batch.tokens(), .targets = batch.targets(), .rows = batch.rows()}),
          .targets = double(batch.num_targets())};
}

// All predicted bytes, if tokens are bytes and `targets` of them were predicted; else 0.
double predicted_bytes(const TokenStore& store, const EvalRows& rows, int64_t targets, bool whole) {
  if (store.header().tokenizer != "byte") return 0;
  const double text = double(rows.num_text_targets());
  // Of a part of the store the share of end marks is taken to be the whole store's.
  return whole ? text : text / double(rows.num_targets()) * double(targets);
}

}  // namespace

EvaluationResult evaluate(const Context& ctx, const Model& model, TokenStore& store,
                          const Mesh& mesh, const EvaluationOptions& options) {
  EvalRows rows(store, options.seq_len);
  const int64_t num_rows =
      options.max_rows > 0 ? std::min(options.max_rows, rows.num_rows()) : rows.num_rows();
  const int64_t batches = (num_rows + options.micro_batch - 1) / options.micro_batch;
  const int64_t dp = mesh.shape().dp;
  Communicator& ranks = mesh.joined({Axis::dp, Axis::cp});
  double loss = 0;
  double targets = 0;
  std::vector<double> round(2 * ranks.size());
  for (int64_t batch = 0; batch < batches; batch += dp) {
    const int64_t first = (batch + mesh.at().dp) * options.micro_batch;
    Part mine;
    if (first < num_rows) {
      mine = evaluate_part(ctx, model, rows, mesh, first,
                           std::min(options.micro_batch, num_rows - first));
    } else if (mesh.shape().ep > 1) {
      // The others need this rank's experts: a row behind the store's end, without a target.
      mine = evaluate_part(ctx, model, rows, mesh, rows.num_rows(), 1);
    }
    const std::array<double, 2> sent = {mine.loss, mine.targets};
    ranks
        .all_gather(ConstTensorView(sent.data(), {2}),
                    TensorView(round.data(), {int64_t(round.size())}))
        .wait();
    for (int rank = 0; rank < ranks.size(); ++rank) {
      loss += round[2 * rank];
      targets += round[2 * rank + 1];
    }
  }
  EvaluationResult result{.loss = loss / std::max(1.0, targets), .targets = int64_t(targets)};
  const double bytes = predicted_bytes(store, rows, result.targets, num_rows == rows.num_rows());
  if (bytes > 0) result.bits_per_byte = loss / std::numbers::ln2 / bytes;
  return result;
}

}  // namespace sluice
