#include "kernels/gated_rms_norm/gated_rms_norm.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

struct Case {
  Dims dims;
  int64_t groups = 1;
  int64_t z_begin = 0;  // z is a slice of a wider projection that begins here
  int64_t padding = 0;  // of rows
};

void forward_backward(Side& side, const Case& c, GateOrder gate) {
  const int64_t E = c.dims.row_size();
  Dims wide = c.dims;
  wide.size[wide.rank - 1] += 2 * c.z_begin;
  const TensorView projection = side.normal(wide);
  const TensorView dprojection = side.compare("dz in a projection", side.normal(wide));
  const TensorView x = side.normal(c.dims, 1, 0, c.padding);
  const TensorView z = projection.columns(c.z_begin, {E});
  const TensorView weight = side.stat_normal({E}, 0.5, 1);
  gated_rms_norm_forward(side.ctx(), {.x = x,
                                      .z = z,
                                      .weight = weight,
                                      .y = side.output("y", c.dims, side.dtype(), c.padding),
                                      .groups = c.groups,
                                      .gate = gate});
  gated_rms_norm_backward(side.ctx(), {.dy = side.normal(c.dims),
                                       .x = x,
                                       .z = z,
                                       .weight = weight,
                                       .dx = side.output("dx", c.dims, side.dtype()),
                                       .dz = dprojection.columns(c.z_begin, {E}),
                                       .dweight = side.compare("dweight", side.stat_normal({E})),
                                       .groups = c.groups,
                                       .gate = gate});
}

constexpr GpuBounds kBounds = {.arena_bytes = size_t{2} << 20, .rounds_once = true};

class GatedRmsNormGpu : public testing::TestWithParam<Case> {};

TEST_P(GatedRmsNormGpu, NormOfTheGated) {
  check_on_gpu([](Side& side) { forward_backward(side, GetParam(), GateOrder::before); }, kBounds);
}
TEST_P(GatedRmsNormGpu, GateOfTheNormed) {
  check_on_gpu([](Side& side) { forward_backward(side, GetParam(), GateOrder::after); }, kBounds);
}

// In registers: less than a warp's columns, models' widths and groups, blocks of several rows.
// Plain: odd widths and beginnings, wider groups.
INSTANTIATE_TEST_SUITE_P(Shapes, GatedRmsNormGpu,
                         testing::Values(Case{{1, 5}}, Case{{3, 8}}, Case{{5, 1, 96}, 3, 64, 8},
                                         Case{{2, 41, 1536}, 1, 32}, Case{{2, 21, 4096}, 8, 128},
                                         Case{{40, 4096}}, Case{{3, 8192}}, Case{{5, 8200}},
                                         Case{{2300, 48}, 2}, Case{{2, 9, 66}, 3, 8},
                                         Case{{2, 9, 64}, 1, 5}, Case{{2200, 33}, 1, 7, 3}));

// Blocks of many warps go from row to row.
TEST(GatedRmsNormGpuEdges, WideBlocksOfSeveralRows) {
  check_on_gpu(
      [](Side& side) {
        forward_backward(side, {.dims = {300, 7688}}, GateOrder::before);
      },
      {.bf16 = kBounds.bf16, .arena_bytes = size_t{8} << 20, .in_f32 = false});
}

TEST(GatedRmsNormGpuEdges, InPlace) {
  for (const int64_t E : {64, 37}) {
    check_on_gpu(
        [E](Side& side) {
          const TensorView weight = side.stat_normal({E}), z = side.normal({11, E});
          const TensorView x = side.compare("y in x", side.normal({11, E}));
          const TensorView dy = side.compare("dx in dy", side.normal({11, E}));
          gated_rms_norm_backward(side.ctx(),
                                  {.dy = dy,
                                   .x = x,
                                   .z = z,
                                   .weight = weight,
                                   .dx = dy,
                                   .dz = side.output("dz", {11, E}, side.dtype()),
                                   .dweight = side.compare("dweight", side.stat_normal({E}))});
          gated_rms_norm_forward(side.ctx(), {.x = x, .z = z, .weight = weight, .y = x});
        },
        kBounds);
  }
}

}  // namespace
}  // namespace sluice::test
