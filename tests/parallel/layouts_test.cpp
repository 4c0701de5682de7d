#include "tests/support/layouts.h"

#include <gtest/gtest.h>

#include "tests/support/batch.h"

namespace sluice::test {
namespace {

TEST(Layouts, PartsOfABatchPutTogetherAreTheBatch) {
  const TestRows batch(3, 7, {{2, 5}, {1, 6}, {}});
  const Rows& whole = batch;
  const Tensor x = normal({3, 7, 2}, DType::f32, 1);
  for (const MeshShape& shape : {MeshShape{}, MeshShape{.cp = 3}, MeshShape{.cp = 7},
                                 MeshShape{.dp = 2, .ep = 2, .cp = 2}}) {
    Tensor pasted(x.dims(), x.dtype());
    Tensor starts({3, 7}, DType::i32), positions({3, 7}, DType::i32);
    run_layout(shape, [&](const Mesh& mesh) {
      const ShardRows shard(whole, mesh);
      const Rows& rows = shard;
      EXPECT_EQ(rows.cuts.size(), size_t(shape.cp) + 1);
      EXPECT_EQ(rows.begin, rows.cuts[mesh.at().cp]);
      EXPECT_EQ(rows.begin + rows.tokens, rows.cuts[mesh.at().cp + 1]);
      shard.paste(shard.cut(x), pasted);
      Tensor own({rows.rows, rows.tokens}, DType::i32), place({rows.rows, rows.tokens}, DType::i32);
      for (int64_t i = 0; i < own.numel(); ++i) {
        own.set(i, rows.local_doc_begin.as<int32_t>()[i] + rows.begin);
        place.set(i, rows.positions.as<int32_t>()[i]);
      }
      shard.paste(own, starts);
      shard.paste(place, positions);
    });
    EXPECT_TRUE(bit_equal(pasted, x)) << to_string(shape);
    for (int64_t i = 0; i < starts.numel(); ++i) {
      EXPECT_EQ(starts.get(i), whole.doc_begin.as<int32_t>()[i]);
      EXPECT_EQ(positions.get(i), whole.positions.as<int32_t>()[i]);
    }
  }
}

TEST(Layouts, AnErrorOfARankIsTheCallers) {
  EXPECT_THROW(run_layout({.cp = 3},
                          [](const Mesh& mesh) {
                            if (mesh.at().cp == 1) throw DataError("of one rank");
                            mesh.axis(Axis::cp).barrier().wait();
                          }),
               DataError);
}

TEST(Layouts, SumsAreOverTheGroup) {
  run_layout({.dp = 2, .cp = 2}, [](const Mesh& mesh) {
    Tensor part({2}, DType::f64);
    part.fill(double(mesh.world().rank()));
    EXPECT_EQ(sum_over(mesh.axis(Axis::cp), part).get(1), mesh.at().dp == 0 ? 1 : 5);
  });
}

}  // namespace
}  // namespace sluice::test
