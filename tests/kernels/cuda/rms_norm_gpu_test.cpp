#include "kernels/rms_norm/rms_norm.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

struct Shape {
  Dims dims;
  int64_t padding = 0;  // of rows, on half of the tensors
};

enum class Stream { of_branches, of_floats };

// Every optional argument. The exact side has one dtype for both streams, but not the same values.
void forward_backward(Side& side, const Shape& shape, Stream residual_stream) {
  const Dims& dims = shape.dims;
  const int64_t D = dims.row_size(), padding = shape.padding;
  const bool floats = residual_stream == Stream::of_floats;
  const DType stream = floats ? side.stat() : side.dtype();
  // The gradient through the norm of a single number next to 0 is a difference of large terms.
  const double mean = D == 1 ? 3 : 0;
  const auto residual = [&](int64_t pad) {
    return floats ? side.stat_normal(dims, 1, mean, pad) : side.normal(dims, 1, mean, pad);
  };
  const TensorView weight = side.stat_normal({D}, 0.5, 1);
  const TensorView sum = side.output("sum", dims, stream);
  const TensorView rstd = side.output("rstd", {dims.rows()}, side.stat());
  rms_norm_forward(side.ctx(), {.x = residual(padding),
                                .delta = side.normal(dims),
                                .weight = weight,
                                .sum = sum,
                                .y = side.output("y", dims, side.dtype(), padding),
                                .rstd = rstd});
  const TensorView dx = side.output("dx", dims, stream, padding);
  RmsNormBackward backward = {.dy = side.normal(dims, 1, 0, padding),
                              .sum = sum,
                              .weight = weight,
                              .rstd = rstd,
                              .dsum = residual(0),
                              .dx = dx,
                              .dweight = side.compare("dweight", side.stat_normal({D}))};
  if (stream != side.dtype()) backward.dx_rounded = side.output("rounded", dims, side.dtype());
  rms_norm_backward(side.ctx(), backward);
  // Where there is no rounding, dx is what the rounded one is compared with.
  if (stream == side.dtype()) side.compare("rounded", dx);
}

constexpr GpuBounds kBounds = {.arena_bytes = size_t{2} << 20};
// A stream of bf16 rounds the sum, and then what is made of it.
constexpr GpuBounds kBoundsOfFloats = {.arena_bytes = kBounds.arena_bytes, .rounds_once = true};

class RmsNormGpu : public testing::TestWithParam<Shape> {};

TEST_P(RmsNormGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) { forward_backward(side, GetParam(), Stream::of_branches); },
               kBounds);
}

TEST_P(RmsNormGpu, ResidualStreamOfFloats) {
  check_on_gpu([](Side& side) { forward_backward(side, GetParam(), Stream::of_floats); },
               kBoundsOfFloats);
}

// In pieces of 16 bytes: less than a warp's columns, a model's widths, all that the registers hold,
// blocks of several rows. Plain: odd widths, odd strides, wider rows.
INSTANTIATE_TEST_SUITE_P(Shapes, RmsNormGpu,
                         testing::Values(Shape{{1, 1}}, Shape{{7, 13}}, Shape{{3, 8}},
                                         Shape{{5, 64}, 8}, Shape{{3, 1, 776}},
                                         Shape{{2, 37, 1024}, 3}, Shape{{2, 100, 2048}, 64},
                                         Shape{{9, 2560}}, Shape{{3, 8192}}, Shape{{5, 8200}, 8},
                                         Shape{{2300, 48}, 16}, Shape{{2200, 33}}));

// Blocks of many warps go from row to row.
TEST(RmsNormGpuEdges, WideBlocksOfSeveralRows) {
  check_on_gpu(
      [](Side& side) {
        forward_backward(side, {{300, 7688}}, Stream::of_floats);
      },
      {.bf16 = kBounds.bf16, .arena_bytes = size_t{8} << 20, .in_f32 = false});
}

TEST(RmsNormGpuEdges, NothingOptional) {
  for (const int64_t D : {64, 37}) {
    check_on_gpu(
        [D](Side& side) {
          const TensorView x = side.compare("y in place", side.normal({11, D}));
          const TensorView sum = side.normal({11, D});
          const TensorView dy = side.compare("dx in place", side.normal({11, D}));
          rms_norm_forward(side.ctx(), {.x = x, .y = x});
          rms_norm_backward(side.ctx(),
                            {.dy = dy, .sum = sum, .rstd = side.stat_normal({11}), .dx = dy});
        },
        kBounds);
  }
}

TEST(RmsNormGpuEdges, TensorsInPlace) {
  for (const int64_t D : {96, 55}) {
    check_on_gpu(
        [D](Side& side) {
          const Dims dims = {3, 7, D};
          const TensorView weight = side.stat_normal({D}, 0.5, 1);
          const TensorView x = side.compare("sum in x", side.normal(dims));
          const TensorView delta = side.compare("y in delta", side.normal(dims));
          const TensorView dsum = side.compare("dx in dsum", side.normal(dims));
          const TensorView rstd = side.output("rstd", {21}, side.stat());
          rms_norm_forward(
              side.ctx(),
              {.x = x, .delta = delta, .weight = weight, .sum = x, .y = delta, .rstd = rstd});
          rms_norm_backward(side.ctx(),
                            {.dy = side.normal(dims),
                             .sum = x,
                             .weight = weight,
                             .rstd = rstd,
                             .dsum = dsum,
                             .dx = dsum,
                             .dweight = side.compare("dweight", side.stat_normal({D}))});
        },
        kBounds);
  }
}

// Columns of a projection: strided rows that begin anywhere.
TEST(RmsNormGpuEdges, SlicesOfAProjection) {
  check_on_gpu(
      [](Side& side) {
        const TensorView projected = side.normal({2, 19, 100});
        for (const int64_t begin : {0, 8, 33}) {
          const TensorView x = projected.columns(begin, {48});
          const TensorView rstd = side.output("rstd", {38}, side.stat());
          rms_norm_forward(side.ctx(),
                           {.x = x, .y = side.output("y", x.dims, side.dtype()), .rstd = rstd});
          rms_norm_backward(side.ctx(), {.dy = side.normal(x.dims),
                                         .sum = x,
                                         .rstd = rstd,
                                         .dx = side.output("dx", x.dims, side.dtype())});
        }
      },
      kBounds);
}

}  // namespace
}  // namespace sluice::test
