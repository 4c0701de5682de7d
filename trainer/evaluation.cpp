#include "trainer/evaluation.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace sluice {

EvaluationResult evaluate(const Context& ctx, const Model& model, TokenStore& store,
                          Communicator& group, int64_t seq_len, int64_t micro_batch,
                          int64_t max_rows) {
  EvalRows rows(store, seq_len);
  const int64_t num_rows = max_rows > 0 ? std::min(max_rows, rows.num_rows()) : rows.num_rows();
  const int64_t batches = (num_rows + micro_batch - 1) / micro_batch;
  const int64_t rounds = (batches + group.size() - 1) / group.size();
  double loss = 0;
  int64_t targets = 0;
  std::vector<double> round(2 * group.size());
  for (int64_t i = 0; i < rounds; ++i) {
    const int64_t first = (i * group.size() + group.rank()) * micro_batch;
    double mine[2] = {0, 0};  // loss, targets
    if (first < num_rows) {
      const Batch batch = rows.batch(first, std::min(micro_batch, num_rows - first));
      mine[0] = model.evaluate(
          ctx, {.tokens = batch.tokens(), .targets = batch.targets(), .rows = batch.rows()});
      mine[1] = double(batch.num_targets());
    }
    group.all_gather(ConstTensorView(mine, {2}), TensorView(round.data(), {int64_t(round.size())}))
        .wait();
    for (int rank = 0; rank < group.size(); ++rank) {
      loss += round[2 * rank];
      targets += int64_t(round[2 * rank + 1]);
    }
  }
  EvaluationResult result{.loss = loss / double(std::max<int64_t>(1, targets)), .targets = targets};
  const bool whole = num_rows == rows.num_rows();
  if (store.header().tokenizer == "byte" && rows.num_text_targets() > 0) {
    // Of a part of the store the share of end marks is taken to be the whole store's.
    const double share = double(rows.num_text_targets()) / double(rows.num_targets());
    const double bytes = whole ? double(rows.num_text_targets()) : share * double(targets);
    result.bits_per_byte = loss / std::numbers::ln2 / bytes;
  }
  return result;
}

}  // namespace sluice
