#include "kernels/activation/activation.h"

#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

struct Case {
  Activation kind = Activation::swiglu;
  Dims dims;
  int64_t padding = 0;  // of rows, on half of the tensors
};

// There is no scratch.
constexpr GpuBounds kBounds = {.arena_bytes = size_t{1} << 16, .rounds_once = true};

class ActivationGpu : public testing::TestWithParam<Case> {};

TEST_P(ActivationGpu, AgreesWithCpu) {
  const Case& c = GetParam();
  check_on_gpu(
      [&c](Side& side) {
        const bool gated = c.kind == Activation::swiglu;
        const TensorView x = side.normal(c.dims, 3, 0, c.padding);
        const TensorView up = gated ? side.normal(c.dims) : TensorView{};
        activation_forward(side.ctx(), {.kind = c.kind,
                                        .x = x,
                                        .up = up,
                                        .y = side.output("y", c.dims, side.dtype(), c.padding)});
        ActivationBackward backward = {.kind = c.kind,
                                       .dy = side.normal(c.dims),
                                       .x = x,
                                       .up = up,
                                       .dx = side.output("dx", c.dims, side.dtype())};
        if (gated) backward.dup = side.output("dup", c.dims, side.dtype(), c.padding);
        activation_backward(side.ctx(), backward);
      },
      kBounds);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ActivationGpu,
    testing::Values(Case{Activation::swiglu, {1}}, Case{Activation::swiglu, {2, 17, 4096}},
                    Case{Activation::swiglu, {3, 5, 2056}, 8},
                    Case{Activation::swiglu, {3, 41, 37}, 5}, Case{Activation::swiglu, {7, 11, 13}},
                    Case{Activation::relu2, {4, 33, 128}}, Case{Activation::relu2, {9, 17}, 3},
                    Case{Activation::gelu, {4, 33, 128}}, Case{Activation::gelu, {9, 17}, 3},
                    Case{Activation::relu2, {70000, 3}, 1}));

// The halves of one projection, and gradients written over what they are made from.
TEST(ActivationGpuEdges, HalvesOfAProjectionInPlace) {
  for (const int64_t F : {64, 37}) {
    check_on_gpu(
        [F](Side& side) {
          const TensorView both = side.compare("dx and dup in place", side.normal({2, 29, 2 * F}));
          const TensorView x = both.columns(0, {F}), up = both.columns(F, {F});
          const TensorView dy = side.normal({2, 29, F});
          activation_forward(side.ctx(),
                             {.x = x, .up = up, .y = side.output("y", dy.dims, side.dtype())});
          activation_backward(side.ctx(), {.dy = dy, .x = x, .up = up, .dx = x, .dup = up});
        },
        kBounds);
  }
}

// Where exp overflows and erfc underflows.
TEST(ActivationGpuEdges, FarFromZero) {
  check_on_gpu(
      [](Side& side) {
        const Dims dims = {2, 8};
        const TensorView x =
            side.values(dims, side.dtype(),
                        {-200, -100, -30, -6, 6, 30, 100, 200, -89, -12, 0, 0.5, 1, 12, 89, 3});
        const TensorView up = side.normal(dims), dy = side.normal(dims);
        for (const Activation kind : {Activation::swiglu, Activation::relu2, Activation::gelu}) {
          const bool gated = kind == Activation::swiglu;
          activation_forward(side.ctx(), {.kind = kind,
                                          .x = x,
                                          .up = gated ? up : TensorView{},
                                          .y = side.output("y", dims, side.dtype())});
          ActivationBackward backward = {.kind = kind,
                                         .dy = dy,
                                         .x = x,
                                         .up = gated ? up : TensorView{},
                                         .dx = side.output("dx", dims, side.dtype())};
          if (gated) backward.dup = side.output("dup", dims, side.dtype());
          activation_backward(side.ctx(), backward);
        }
      },
      kBounds);
}

}  // namespace
}  // namespace sluice::test
