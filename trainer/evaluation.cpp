#include "trainer/evaluation.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/core/device_memory.h"
#include "kernels/elementwise/elementwise.h"
#include "trainer/device_batch.h"

namespace sluice {

namespace {

// What ranks find of one micro-batch each, where the model runs: (ranks, kColumns) f64.
class Round {
 public:
  enum Column { kLoss, kTargets, kColumns };

  Round(const Context& ctx, Communicator& ranks)
      : ctx_(ctx),
        ranks_(ranks),
        storage_(ranks.size() * kColumns * sizeof(double), ctx.device),
        all_(storage_.data(), {ranks.size() * kColumns}, DType::f64, ctx.device),
        own_(all_.columns(ranks.rank() * kColumns, {kColumns})) {}

  void clear() { zero(ctx_, own_); }
  // Rows [first, first + count), on this rank; those from `end` on are padding.
  void evaluate_part(const Model& model, EvalRows& rows, const Mesh& mesh, int64_t first,
                     int64_t count, int64_t end) {
    Batch batch = rows.batch(first, count, {mesh.at().cp, mesh.shape().cp}, end);
    const double targets = double(batch.num_targets());
    batch_.load(ctx_, std::move(batch));
    model.evaluate(ctx_, batch_.input(), own_.columns(kLoss, {1}));
    copy_bytes(own_.columns(kTargets, {1}).data, ctx_.device, &targets, kCpu, sizeof(targets),
               ctx_.stream);
  }
  // Collective: rank by rank.
  std::vector<double> gather() {
    ranks_.all_gather(own_, all_).order(ctx_.stream);
    return to_host(all_, ctx_.stream);
  }

 private:
  Context ctx_;
  Communicator& ranks_;
  Buffer storage_;
  TensorView all_, own_;
  DeviceBatch batch_;
};

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
  Round round(ctx, ranks);
  double loss = 0;
  double targets = 0;
  for (int64_t batch = 0; batch < batches; batch += dp) {
    const int64_t first = (batch + mesh.at().dp) * options.micro_batch;
    round.clear();
    // The others need this rank's experts, and experts with a capacity as many rows of every rank.
    const int64_t count =
        mesh.shape().ep > 1 ? options.micro_batch : std::min(options.micro_batch, num_rows - first);
    if (count > 0) round.evaluate_part(model, rows, mesh, first, count, num_rows);
    const std::vector<double> found = round.gather();
    for (int rank = 0; rank < ranks.size(); ++rank) {
      loss += found[rank * Round::kColumns + Round::kLoss];
      targets += found[rank * Round::kColumns + Round::kTargets];
    }
  }
  EvaluationResult result{.loss = loss / std::max(1.0, targets), .targets = int64_t(targets)};
  const double bytes = predicted_bytes(store, rows, result.targets, num_rows == rows.num_rows());
  if (bytes > 0) result.bits_per_byte = loss / std::numbers::ln2 / bytes;
  return result;
}

}  // namespace sluice
