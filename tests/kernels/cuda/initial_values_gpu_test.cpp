#include "kernels/initial_values/initial_values.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/core/host_copy.h"

namespace sluice::test {
namespace {

using Kind = Initializer::Kind;

std::vector<float> draw(const Initializer& initializer, int64_t first, int64_t count,
                        Device device) {
  const OwnedStream stream(device);
  Arena none("none", 0, device);
  const Context ctx{
      .device = device, .stream = stream, .saved = &none, .scratch = &none, .rng = {}};
  const Buffer storage(count * sizeof(float), device);
  const TensorView values(storage.data(), {count}, DType::f32, device);
  initial_values(ctx, {.initializer = initializer,
                       .key = {.seed = 9, .stream = 0x123456789abcdefull},
                       .first = first,
                       .values = values});
  const HostCopy host(values, stream);
  const float* const data = host.view().as<float>();
  return {data, data + count};
}

// The CPU's, bit for bit: far into the normal distribution's tails, and across what 32 bits count.
TEST(InitialValuesGpu, HaveTheBitsOfTheCpu) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  const Device gpu{Device::Kind::cuda, 0};
  for (const Initializer& initializer :
       std::vector<Initializer>{{.kind = Kind::constant, .a = 0.1},
                                {.kind = Kind::normal, .a = 0.02},
                                {.kind = Kind::uniform, .a = 0.0221},
                                {.kind = Kind::log_uniform, .a = 1, .b = 16},
                                {.kind = Kind::log_column, .a = 128},
                                {.kind = Kind::softplus_inv, .a = -6.9, .b = -2.3, .c = 1e-4}}) {
    for (const int64_t first : {int64_t{0}, (int64_t{1} << 32) - 1000}) {
      for (const int64_t count : {int64_t{1}, int64_t{2'000'003}}) {
        const std::vector<float> expected = draw(initializer, first, count, kCpu);
        const std::vector<float> got = draw(initializer, first, count, gpu);
        EXPECT_TRUE(got == expected) << "kind " << int(initializer.kind) << " from " << first;
      }
    }
  }
}

}  // namespace
}  // namespace sluice::test
