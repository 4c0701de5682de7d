#include "kernels/device/launch.cuh"
#include "tests/support/errors.h"
#include "tests/support/gpu_twin.h"

namespace sluice::test {
namespace {

constexpr int kThreads = 256;

// y[i] = 2 i, one addend by way of a static array, the other of the far end of the dynamic one.
__global__ void shared_memory_kernel(float* y, int dynamic_floats) {
  __shared__ float declared[kThreads];
  extern __shared__ float given[];
  const int i = threadIdx.x, mirrored = kThreads - 1 - i;
  declared[i] = float(i);
  given[dynamic_floats - 1 - i] = float(i);
  __syncthreads();
  y[mirrored] = declared[mirrored] + given[dynamic_floats - 1 - mirrored];
}

void run(Side& side, const TensorView& y, size_t shared_bytes) {
  cuda::launch(side.ctx(), "shared_memory",
               {.blocks = 1, .threads = kThreads, .shared_bytes = shared_bytes},
               shared_memory_kernel, y.as<float>(), int(shared_bytes / sizeof(float)));
}

class LaunchGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  }
};

// 48 KiB are what a block has without asking, all in all.
TEST_F(LaunchGpu, DynamicSharedMemoryBesideStatic) {
  Side side({Device::Kind::cuda, 0}, DType::f32, DType::f32, 1, 1 << 10);
  for (const size_t kib : {1, 47, 48, 49, 96}) {
    SCOPED_TRACE(kib);
    const TensorView y = side.output("y", {kThreads}, DType::f32);
    run(side, y, kib << 10);
    const std::vector<double> got = side.download(y);
    for (int i = 0; i < kThreads; ++i) ASSERT_EQ(got[i], 2.0 * i);
  }
}

TEST_F(LaunchGpu, TooMuchSharedMemoryIsNamed) {
  Side side({Device::Kind::cuda, 0}, DType::f32, DType::f32, 1, 1 << 10);
  const TensorView y = side.output("y", {kThreads}, DType::f32);
  expect_error<Error>([&] { run(side, y, size_t{1} << 20); }, {"shared_memory", "1048576 bytes"});
  run(side, y, 1 << 10);  // nothing is left of the error
  EXPECT_EQ(side.download(y)[1], 2);
}

TEST_F(LaunchGpu, TooMuchMemoryIsNamed) {
  Side side({Device::Kind::cuda, 0}, DType::f32, DType::f32, 1, 1 << 10);
  const size_t bytes = memory_of(side.ctx().device) + 1;
  expect_error<IoError>(
      [&] { allocate_bytes(bytes, side.ctx().device); },
      {concat(bytes, " bytes on GPU 0"), "are free", "train.micro_batch", "train.recompute"});
  const TensorView y = side.output("y", {kThreads}, DType::f32);
  run(side, y, 1 << 10);  // nothing is left of the error
  EXPECT_EQ(side.download(y)[1], 2);
}

}  // namespace
}  // namespace sluice::test
