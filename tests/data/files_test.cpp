#include "data/files.h"

#include <gtest/gtest.h>

#include "tests/data/data_support.h"

namespace sluice::test {
namespace {

using Names = std::vector<std::string>;

TEST(Files, WritesReadsAndOverwrites) {
  const TempFolder folder;
  const std::string bytes("a\0b", 3);
  atomic_write_file(folder / "x", bytes);
  EXPECT_EQ(read_whole_file(folder / "x", 3), bytes);
  atomic_write_file(folder / "x", "");
  EXPECT_EQ(read_whole_file(folder / "x", 0), "");
  EXPECT_EQ(folder.names(), Names{"x"});
}

TEST(Files, FullDiskLeavesTheOldFileAndNothingElse) {
  const TempFolder folder;
  atomic_write_file(folder / "x", "old");
  {
    const FileSizeLimit limit(4096);
    expect_error<IoError>([&] { atomic_write_file(folder / "x", std::string(5000, 'n')); },
                          {folder / "x", "5000 bytes needed", "free"});
  }
  EXPECT_EQ(read_text(folder / "x"), "old");
  EXPECT_EQ(folder.names(), Names{"x"});
}

TEST(Files, UnwritablePathsAreNamed) {
  const TempFolder folder;
  write_file(folder / "file", "");
  expect_error<IoError>([&] { atomic_write_file(folder / "no/x", "1"); },
                        {folder / "no/x", "there is no folder"});
  expect_error<IoError>([&] { atomic_write_file(folder / "file/x", "1"); }, {folder / "file/x"});
  expect_error<UsageError>([&] { atomic_write_file(folder.path() + "/", "1"); }, {"file's name"});
  std::filesystem::create_directory(folder / "sub");
  expect_error<IoError>([&] { atomic_write_file(folder / "sub", "1"); }, {folder / "sub"});
  EXPECT_EQ(folder.names(), (Names{"file", "sub"}));
}

TEST(Files, AnUncommittedFileVanishes) {
  const TempFolder folder;
  {
    StagedFile staged(folder / "x", "1");
    EXPECT_EQ(folder.names().size(), 1u);
    EXPECT_NE(folder.names().front(), "x");
    const StagedFile moved = std::move(staged);
    EXPECT_EQ(folder.names().size(), 1u);
  }
  EXPECT_EQ(folder.names(), Names{});
}

TEST(Files, ReadingHasLimits) {
  const TempFolder folder;
  write_file(folder / "x", "12345");
  expect_error<DataError>([&] { read_whole_file(folder / "x", 4); }, {"at most 4", "got 5"});
  expect_error<IoError>([&] { read_whole_file(folder / "y", 4); }, {folder / "y", "No such"});
  expect_error<IoError>([&] { read_whole_file(folder.path(), 1 << 20); }, {"not a regular file"});
}

TEST(Files, HashesAreXxh3) {
  // The hash of nothing, from the published test vectors.
  EXPECT_EQ(xxh3_128_hex(""), "99aa06d3014798d86001c324468d497f");
  const std::string text(1000, 'x');
  Xxh3Stream stream;
  stream.update(text.data(), 1);
  stream.update(text.data() + 1, 999);
  EXPECT_EQ(stream.hex(), xxh3_128_hex(text));
  EXPECT_NE(stream.hex(), xxh3_128_hex(text + "x"));
}

}  // namespace
}  // namespace sluice::test
