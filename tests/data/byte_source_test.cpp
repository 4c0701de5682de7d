#include "data/byte_source.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include "data/import.h"
#include "kernels/core/rng.h"
#include "tests/data/data_support.h"

namespace sluice::test {
namespace {

std::string gzip(const std::string& bytes) {
  constexpr int kGzip = 16;
  z_stream stream{};
  EXPECT_EQ(::deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + kGzip, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(::deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = uInt(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = uInt(out.size());
  EXPECT_EQ(::deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

std::string zstd(const std::string& bytes) {
  std::string out(::ZSTD_compressBound(bytes.size()), '\0');
  out.resize(::ZSTD_compress(out.data(), out.size(), bytes.data(), bytes.size(), 3));
  return out;
}

// Half of it shrinks, half does not.
std::string half_random(size_t bytes) {
  std::string text(bytes, 'a');
  for (size_t i = 0; i < bytes; i += 2) text[i] = char(random_below({.seed = 1}, i, 256));
  return text;
}

// All of it, by reads of `step` bytes.
std::string read_all(const std::string& path, Compression compression, size_t step) {
  const std::unique_ptr<ByteSource> source = open_bytes(path, compression);
  std::string all, piece(step, '\0');
  while (const size_t count = source->read(piece.data(), step)) all.append(piece, 0, count);
  EXPECT_EQ(source->read(piece.data(), step), 0u);
  return all;
}

struct Format {
  Compression compression;
  std::string (*compress)(const std::string&);
};

class Compressed : public testing::TestWithParam<Format> {
 protected:
  std::string read(size_t step) { return read_all(path_, GetParam().compression, step); }
  std::string compress(const std::string& bytes) { return GetParam().compress(bytes); }

  TempFolder folder_;
  std::string path_ = folder_ / "file";
};

TEST_P(Compressed, GivesTheBytesBack) {
  for (const size_t size : {0, 1, 17, 1 << 20, (3 << 20) + 5}) {
    const std::string bytes = half_random(size);
    write_file(path_, compress(bytes));
    for (const size_t step : {size_t{4093}, size_t{1} << 20, size + 1})
      EXPECT_TRUE(read(step) == bytes) << size << " by " << step;
  }
  // Far more text than compressed bytes: output that waits while no input is left.
  const std::string zeros(8 << 20, 'z');
  write_file(path_, compress(zeros));
  EXPECT_TRUE(read(1000) == zeros);
}

TEST_P(Compressed, StreamsMayFollowOneAnother) {
  write_file(path_, compress("one, ") + compress("") + compress("two"));
  EXPECT_EQ(read(2), "one, two");
}

TEST_P(Compressed, DamageIsNamed) {
  const std::string whole = compress(half_random(100'000));
  for (const size_t kept : {size_t{3}, size_t{12}, whole.size() / 2, whole.size() - 1}) {
    write_file(path_, whole.substr(0, kept));
    expect_error<DataError>([&] { read(4096); }, {path_, "incomplete"});
  }
  write_file(path_, "{\"text\": \"not compressed at all\"}\n");
  expect_error<DataError>([&] { read(4096); }, {path_, "is damaged"});
  write_file(path_, whole + "more");
  expect_error<DataError>([&] { read(4096); }, {path_, "compressed file"});
  expect_error<IoError>([&] { open_bytes(folder_ / "none", GetParam().compression); },
                        {"none", "cannot open"});
}

INSTANTIATE_TEST_SUITE_P(Formats, Compressed,
                         testing::Values(Format{Compression::gzip, gzip},
                                         Format{Compression::zstd, zstd}),
                         [](const auto& info) {
                           return info.param.compression == Compression::gzip ? "gzip" : "zstd";
                         });

// A checksum that does not fit: gzip has one at its end.
TEST(Compressed, AGzipChecksumIsChecked) {
  const TempFolder folder;
  std::string bytes = gzip("some text");
  bytes[bytes.size() - 6] ^= 1;
  write_file(folder / "x", bytes);
  expect_error<DataError>([&] { read_all(folder / "x", Compression::gzip, 100); }, {"damaged"});
}

TEST(Import, CompressedJsonlIsJsonl) {
  const TempFolder folder;
  write_file(folder / "texts/a.jsonl.gz", gzip("{\"text\": \"one\"}\n{\"text\": \"two\"}"));
  write_file(folder / "texts/b.jsonl.zst", zstd("{\"text\": \"three\"}\n"));
  write_file(folder / "texts/c.txt.gz", gzip("left out"));
  BuildOptions options;
  options.inputs = {folder / "texts"};
  options.output = folder / "train.h5";
  EXPECT_EQ(build_store(options).files, 2);
  EXPECT_EQ(read_texts(folder / "train.h5"), (std::vector<std::string>{"one", "two", "three"}));

  options.inputs = {folder / "texts/c.txt.gz"};
  expect_error<UsageError>([&] { build_store(options); }, {"c.txt.gz", "decompress it first"});
  write_file(folder / "bad.jsonl.zst", zstd("{\"text\": \"one\"}\n{\"text\": 2}\n"));
  options.inputs = {folder / "bad.jsonl.zst"};
  expect_error<DataError>([&] { build_store(options); }, {"bad.jsonl.zst:2: ", "not a string"});
}

}  // namespace
}  // namespace sluice::test
