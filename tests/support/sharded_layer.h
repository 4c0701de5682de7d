// A layer whose rows are cut over sequence ranks.
// B batch, T tokens of a row, D model
#pragma once

#include "tests/support/gradient_error.h"
#include "tests/support/layer_check.h"
#include "tests/support/layouts.h"

namespace sluice::test {

// The layer of one rank of the group.
inline LayerHarness sharded_harness(const MakeLayer& make, Communicator& group, int64_t d_model,
                                    DType dtype) {
  return LayerHarness(
      [&](LayerBuild build) {
        build.groups.sequence = &group;
        return make(build);
      },
      d_model, dtype, size_t{1} << 20);
}

struct LayerResult {
  Tensor y, dx;            // (B, T, D)
  NamedTensors gradients;  // of the parameters, summed over the ranks
};

// Forward and backward of a batch; rank r holds its tokens [cuts[r], cuts[r + 1]).
inline LayerResult run_sharded(const MakeLayer& make, const TestRows& batch,
                               const std::vector<int64_t>& cuts, int64_t d_model, DType dtype) {
  const Rows& whole = batch;
  const Dims dims{whole.rows, whole.row_tokens, d_model};
  const Tensor x = normal(dims, dtype, 1), dy = normal(dims, dtype, 2);
  LayerResult result{Tensor(dims, dtype), Tensor(dims, dtype), {}};
  run_ranks(int(cuts.size()) - 1, [&](Communicator& group) {
    const ShardRows shard(whole, {0, whole.rows}, cuts, group.rank());
    LayerHarness h = sharded_harness(make, group, d_model, dtype);
    const Tensor my_x = shard.cut(x), my_dy = shard.cut(dy);
    Tensor y(my_x.dims(), dtype), dx(my_x.dims(), dtype);
    const auto saved = h.layer->forward(h.ctx, shard, {.x = my_x, .y = y});
    h.layer->backward(h.ctx, shard, {.dy = my_dy, .dx = dx}, *saved);
    EXPECT_EQ(h.ctx.scratch().used(), 0u);
    shard.paste(y, result.y);
    shard.paste(dx, result.dx);
    for (int32_t i = 0; i < int32_t(h.store.parameters().size()); ++i) {
      Tensor sum = sum_over(group, h.parameter(i, true));
      if (group.rank() == 0) result.gradients.emplace(h.store.parameters()[i].name, std::move(sum));
    }
  });
  return result;
}

}  // namespace sluice::test
