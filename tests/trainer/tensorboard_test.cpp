#include "trainer/tensorboard.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"
#include "tests/support/temp_folder.h"

namespace sluice::test {
namespace {

std::string hex(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes) {
    constexpr const char* kDigits = "0123456789abcdef";
    out += kDigits[uint8_t(byte) >> 4];
    out += kDigits[uint8_t(byte) & 15];
  }
  return out;
}

// Vectors of RFC 3720, B.4, and the common check value.
TEST(Tensorboard, Crc32c) {
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(""), 0u);
}

// The records that TensorBoard 2.21's own protobuf classes and RecordWriter make of these events.
TEST(Tensorboard, GoldenRecords) {
  EXPECT_EQ(hex(tensorboard_record(version_event(1700000000.5))),
            "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b353110");
  EXPECT_EQ(hex(tensorboard_record(restart_event(1700000000.5, 200))),
            "100000000000000095fbfe180900002040fc54d94110c8013a02080164a3c837");
  const std::string values =
      tensorboard_record(scalars_event(1700000001.25, 300, {{"grad_norm", 0.1}, {"mfu(%)", 41.5}}));
  EXPECT_EQ(hex(values),
            "2f000000000000006d5d1d500900005040fc54d94110ac022a210a100a09677261645f6e6f726d15cdcc"
            "cc3d0a0d0a066d667528252915000026423b1690da");
}

TEST(Tensorboard, WriterNamesItsFileAndSaysWhereARunResumed) {
  TempFolder folder;
  TensorboardWriter fresh(folder.path(), 1, {});
  fresh.write(1, {{"loss", 2}});
  TensorboardWriter resumed(folder.path(), 101, {});
  EXPECT_NE(fresh.path(), resumed.path());
  EXPECT_EQ(fresh.path().substr(0, folder.path().size() + 21),
            folder.path() + "/events.out.tfevents.");
  const auto bytes_of = [&](const TensorboardWriter& writer) {
    return folder.read(std::filesystem::path(writer.path()).filename().string());
  };
  const size_t version = tensorboard_record(version_event(0)).size();
  EXPECT_EQ(bytes_of(fresh).size(),
            version + tensorboard_record(scalars_event(0, 1, {{"loss", 2}})).size());
  EXPECT_EQ(bytes_of(resumed).size(), version + tensorboard_record(restart_event(0, 101)).size());
  EXPECT_THROW(TensorboardWriter("/nowhere", 1, {}), IoError);
}

}  // namespace
}  // namespace sluice::test
