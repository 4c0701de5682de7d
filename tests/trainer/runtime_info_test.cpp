#include "trainer/runtime_info.h"

#include <gtest/gtest.h>

#include "kernels/core/device_name.h"

namespace sluice::test {
namespace {

using Lines = std::vector<std::string>;

RuntimeInfo on(const std::string& device) {
  return {.threads = 2,
          .blas = "openblas",
          .blas_version = "0.3.21",
          .isa = "avx512",
          .device = device};
}

TEST(RuntimeInfo, OfThisMachineIsComplete) {
  const RuntimeInfo info = runtime_info(kCpu);
  EXPECT_EQ(info.device, "cpu");
  EXPECT_GE(info.threads, 1);
  EXPECT_NE(info.blas_version, "");
  EXPECT_EQ(runtime_changes(info, info), Lines{});
}

TEST(RuntimeInfo, TellsWhatMayChangeBits) {
  RuntimeInfo other = on("cpu");
  other.threads = 7;
  EXPECT_EQ(runtime_changes(on("cpu"), other), Lines{});
  other.blas_version = "0.3.28", other.isa = "avx2";
  EXPECT_EQ(runtime_changes(on("cpu"), other),
            (Lines{"the BLAS library was openblas 0.3.21, is openblas 0.3.28",
                   "the instruction set was avx512, is avx2"}));
}

TEST(RuntimeInfo, OfAGpuIsItsNameAndLibraries) {
  const std::string old_library = "H100, cuBLASLt 13.0.2, NCCL 2.28.3";
  const std::string new_library = "H100, cuBLASLt 13.1.0, NCCL 2.28.3";
  RuntimeInfo present = on(new_library);
  present.blas_version = "0.3.28", present.isa = "avx2";  // its host computes nothing
  EXPECT_EQ(runtime_changes(on(new_library), present), Lines{});
  EXPECT_EQ(runtime_changes(on(old_library), present),
            Lines{"the device was " + old_library + ", is " + new_library});
  EXPECT_EQ(runtime_changes(on("cpu"), present), Lines{"the device was cpu, is " + new_library});
  EXPECT_EQ(runtime_changes(on(""), present), Lines{});  // not known
}

TEST(PublishedPeak, IsOfTheGpusThatAreKnown) {
  EXPECT_EQ(published_peak_flops("NVIDIA H100 80GB HBM3"), 989e12);
  EXPECT_EQ(published_peak_flops("NVIDIA H200"), 989e12);
  EXPECT_EQ(published_peak_flops("NVIDIA A100-SXM4-80GB"), 312e12);
  EXPECT_EQ(published_peak_flops("NVIDIA B300"), 0);
}

}  // namespace
}  // namespace sluice::test
