#include "trainer/device_choice.h"

#include "tests/support/errors.h"

namespace sluice::test {
namespace {

constexpr auto kAuto = DeviceChoice::auto_, kCuda = DeviceChoice::cuda, kOnCpu = DeviceChoice::cpu;
constexpr auto kF32 = Precision::f32, kBf16 = Precision::bf16;
const FoundGpus kTwo{.count = 2}, kNone{.count = 0, .why_none = "the driver is too old"};

TEST(DeviceChoice, RanksOfAHostTakeItsGpusInTurn) {
  EXPECT_EQ(choose_device(kAuto, kBf16, {}, kTwo), (Device{Device::Kind::cuda, 0}));
  EXPECT_EQ(choose_device(kCuda, kF32, {.rank = 1, .size = 2}, kTwo),
            (Device{Device::Kind::cuda, 1}));
  EXPECT_EQ(choose_device(kOnCpu, kF32, {.rank = 2, .size = 3}, kTwo), kCpu);
  EXPECT_EQ(choose_device(kAuto, kF32, {.rank = 2, .size = 3}, kNone), kCpu);
}

TEST(DeviceChoice, SaysWhatCannotBe) {
  expect_error<UsageError>([] { choose_device(kCuda, kF32, {}, kNone); },
                           {"device: cuda", "the driver is too old", "set device: cpu"});
  expect_error<UsageError>([] { choose_device(kAuto, kBf16, {}, kNone); },
                           {"precision: bf16", "the driver is too old", "set precision: f32"});
  expect_error<UsageError>([] { choose_device(kOnCpu, kBf16, {}, kTwo); },
                           {"precision: bf16", "device is cpu", "set precision: f32"});
  expect_error<UsageError>([] { choose_device(kAuto, kF32, {.rank = 0, .size = 3}, kTwo); },
                           {"3 ranks", "2 GPUs", "start 2 here", "device: cpu"});
  expect_error<UsageError>([] { parse_device("gpu"); }, {"auto, cpu or cuda", "'gpu'"});
}

// As any command does.
TEST(DeviceChoice, AsksTheMachineAtHand) {
  EXPECT_EQ(choose_device(kOnCpu, kF32), kCpu);
  if (num_cuda_devices() > 0) {
    EXPECT_EQ(choose_device(kCuda, kF32), (Device{Device::Kind::cuda, 0}));
  } else {
    expect_error<UsageError>([] { choose_device(kCuda, kF32); }, {why_no_cuda_device()});
  }
}

}  // namespace
}  // namespace sluice::test
