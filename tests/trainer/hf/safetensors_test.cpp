#include "trainer/hf/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "tests/support/errors.h"
#include "tests/support/temp_folder.h"

namespace sluice {
namespace {

using test::expect_error;
using test::TempFolder;

std::string file_of(const std::string& json, const std::string& data) {
  const uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + json + data;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// One f32 tensor "a" of 2 x 3, one u8 scalar "b", an empty tensor "c".
std::string valid_file() {
  return file_of(R"({"__metadata__":{"format":"pt"},)"
                 R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                 R"("b":{"dtype":"U8","shape":[],"data_offsets":[24,25]},)"
                 R"("c":{"dtype":"F64","shape":[0,7],"data_offsets":[25,25]}}  )",
                 bytes_of<float>({1, -2, 3, INFINITY, 5, 6}) + "\x07");
}

void expect_header(const std::string& json, uint64_t data_bytes,
                   std::initializer_list<std::string> parts) {
  expect_error<DataError>([&] { parse_safetensors_header(json, data_bytes, "m.safetensors"); },
                          parts);
}

TEST(Safetensors, ReadsAFile) {
  const TempFolder folder;
  const SafetensorsFile file(folder.write("m.safetensors", valid_file()));
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const SafetensorsEntry& a = *file.find("a");
  EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 3}));
  std::vector<double> values(6);
  file.read_values(a, DType::f64, values.data());
  EXPECT_EQ(values, (std::vector<double>{1, -2, 3, INFINITY, 5, 6}));
  uint8_t scalar = 0;
  file.read_bytes(*file.find("b"), &scalar);
  EXPECT_EQ(scalar, 7);
  EXPECT_EQ(file.find("c")->numel(), 0);
  EXPECT_EQ(file.find("d"), nullptr);
  expect_error<DataError>([&] { file.read_values(*file.find("b"), DType::f32, &scalar); },
                          {"'b' is U8"});
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const TempFolder folder;
  const std::string whole = valid_file();
  for (size_t length = 0; length < whole.size(); ++length) {
    const std::string path = folder.write("m.safetensors", whole.substr(0, length));
    expect_error<DataError>([&] { SafetensorsFile{path}; }, {path});
  }
  const std::string path = folder.write("m.safetensors", whole + "x");
  expect_error<DataError>([&] { SafetensorsFile{path}; }, {"bytes left over"});
}

TEST(Safetensors, LyingLengthsAllocateNothing) {
  const TempFolder folder;
  for (const uint64_t length : {uint64_t{0}, uint64_t{1} << 20, uint64_t{100'000'001},
                                uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    std::string file = valid_file();
    std::memcpy(file.data(), &length, 8);
    const std::string path = folder.write("m.safetensors", file);
    expect_error<DataError>([&] { SafetensorsFile{path}; }, {path});
  }
}

TEST(Safetensors, TheHeaderMustBeOneObjectAndSpaces) {
  expect_header("", 0, {"begin with '{' at byte 8"});
  expect_header(" {}", 0, {"begin with '{'"});
  expect_header("\xef\xbb\xbf{}", 0, {"begin with '{'"});
  expect_header("[]", 0, {"begin with '{'"});
  expect_header("{}\n", 0, {"only spaces", "at 10"});
  expect_header("{} {}", 0, {"not JSON at byte"});
  expect_header("{\"a\xff\":{}}", 0, {"not JSON at byte"});
  expect_header(R"({"a":1})", 0, {"'a'"});
  expect_header(R"({"a":[1]})", 0, {"'a'"});
  expect_header(R"({"a":{"dtype":{"x":1}}})", 0, {"'a'"});
  EXPECT_TRUE(parse_safetensors_header("{}    ", 0, "f").tensors.empty());
}

TEST(Safetensors, EveryEntryNeedsItsThreeKeysOnce) {
  const std::string good = R"("dtype":"U8","shape":[1],"data_offsets":[0,1])";
  EXPECT_EQ(parse_safetensors_header("{\"a\":{" + good + "}}", 1, "f").tensors.size(), 1u);
  expect_header(R"({"a":{"dtype":"U8","shape":[1]}})", 1, {"'a'", "data_offsets"});
  expect_header(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, {"'a'"});
  expect_header(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, {"'a'"});
  expect_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, {"'a'"});
  expect_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, {"'a'"});
  expect_header("{\"a\":{" + good + ",\"dtype\":\"U8\"}}", 1, {"'a'", "'dtype' twice"});
  expect_header("{\"a\":{" + good + ",\"shape\":[1]}}", 1, {"'a'", "'shape' twice"});
  expect_header("{\"a\":{" + good + ",\"strides\":[1]}}", 1, {"'a'", "'strides'"});
  expect_header("{\"a\":{" + good + "},\"a\":{" + good + "}}", 1, {"'a' twice"});
  expect_header(R"({"__metadata__":{"k":"v","k":"w"}})", 0, {"'k' twice"});
  expect_header(R"({"__metadata__":{"k":1}})", 0, {"__metadata__"});
  expect_header(R"({"__metadata__":{},"__metadata__":{}})", 0, {"__metadata__", "twice"});
}

TEST(Safetensors, NumbersAreCheckedForSignRangeAndOverflow) {
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
           offsets + "}}";
  };
  expect_header(entry("U8", "[-1]", "[0,1]"), 1, {"'a'", "negative"});
  expect_header(entry("U8", "[1.0]", "[0,1]"), 1, {"'a'", "no integer"});
  expect_header(entry("U8", "[18446744073709551615]", "[0,1]"), 1, {"'a'", "2^63"});
  expect_header(entry("U8", "[99999999999999999999999]", "[0,1]"), 1, {"'a'"});
  expect_header(entry("U8", "[[1]]", "[0,1]"), 1, {"'a'", "a list"});
  expect_header(entry("F32", "[4294967296,4294967296]", "[0,0]"), 0, {"'a'", "overflows"});
  expect_header(entry("F64", "[2305843009213693952]", "[0,0]"), 0, {"'a'", "overflows"});
  expect_header(entry("F32", "[2]", "[0,4]"), 4, {"'a'", "needs 8 bytes"});
  expect_header(entry("F32", "[1]", "[4,0]"), 4, {"'a'", "needs 4 bytes"});
  expect_header(entry("F8_E4M3", "[1]", "[0,1]"), 1, {"'a'", "'F8_E4M3'", "BF16"});
  expect_header(entry("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, {"16 dims"});
}

TEST(Safetensors, RangesTileTheDataExactly) {
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  EXPECT_EQ(parse_safetensors_header(two("[4,8]", "[0,4]"), 8, "f").tensors.size(), 2u);
  expect_header(two("[0,4]", "[5,9]"), 9, {"'b'", "a hole"});
  expect_header(two("[1,5]", "[5,9]"), 9, {"'a'", "a hole"});
  expect_header(two("[0,4]", "[3,7]"), 7, {"'b'", "an overlap"});
  expect_header(two("[0,4]", "[0,4]"), 4, {"an overlap"});
  expect_header(two("[0,4]", "[4,8]"), 9, {"left over"});
  expect_header(two("[0,4]", "[4,8]"), 7, {"truncated"});
}

TEST(Safetensors, HalfAndBrainFloatsWidenExactly) {
  const TempFolder folder;
  const std::string halves =
      bytes_of<uint16_t>({0x3c00, 0xc000, 0x0001, 0x03ff, 0x7bff, 0xfc00, 0x8000});
  const std::string brains = bytes_of<uint16_t>({0x3f80, 0xc049, 0x0001});
  const std::string path = folder / "m.safetensors";
  write_safetensors(
      path, {{"h", SafetensorsType::F16, {7}, halves}, {"b", SafetensorsType::BF16, {3}, brains}});
  const SafetensorsFile file(path);
  std::vector<float> h(7);
  file.read_values(*file.find("h"), DType::f32, h.data());
  EXPECT_EQ(h, (std::vector<float>{1, -2, std::ldexp(1.0f, -24), std::ldexp(1023.0f, -24), 65504,
                                   -INFINITY, -0.0f}));
  EXPECT_TRUE(std::signbit(h[6]));
  std::vector<double> b(3);
  file.read_values(*file.find("b"), DType::f64, b.data());
  EXPECT_EQ(b, (std::vector<double>{1, -3.140625, std::ldexp(1.0, -133)}));
}

TEST(Safetensors, DoublesAreNeverRoundedSilently) {
  const TempFolder folder;
  const std::string path = folder / "m.safetensors";
  const std::string exact = bytes_of<double>({0.5, -3});
  const std::string inexact = bytes_of<double>({0.5, 0.1});
  write_safetensors(path, {{"exact", SafetensorsType::F64, {2}, exact},
                           {"inexact", SafetensorsType::F64, {2}, inexact}});
  const SafetensorsFile file(path);
  std::vector<float> values(2);
  file.read_values(*file.find("exact"), DType::f32, values.data());
  EXPECT_EQ(values, (std::vector<float>{0.5, -3}));
  expect_error<DataError>(
      [&] { file.read_values(*file.find("inexact"), DType::f32, values.data()); },
      {"'inexact'", "element 1"});
}

TEST(Safetensors, WritesByWidthThenNamePadded) {
  const std::string word = bytes_of<float>({1});
  const std::string file = serialize_safetensors({{"z", SafetensorsType::F32, {1}, word},
                                                  {"b", SafetensorsType::U8, {2}, "xy"},
                                                  {"a", SafetensorsType::F32, {1, 1}, word}});
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  const SafetensorsHeader header =
      parse_safetensors_header(file.substr(8, length), file.size() - 8 - length, "f");
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_EQ(header.tensors[0].begin, 0u);
  EXPECT_EQ(header.tensors[1].begin, 8u);  // b, behind the wider a and z
  EXPECT_EQ(header.tensors[2].begin, 4u);
}

TEST(Safetensors, RandomMutantsAreReadOrRefused) {
  const TempFolder folder;
  const std::string whole = valid_file();
  int64_t refused = 0;
  for (uint64_t mutant = 0; mutant < 2000; ++mutant) {
    std::string file = whole;
    const RngKey key{.seed = 7, .stream = mutant};
    const int64_t edits = 1 + random_below(key, 0, 4);
    for (int64_t edit = 1; edit <= edits; ++edit) {
      // Digits, quotes and brackets are where a header hurts.
      const std::string alphabet = std::string("0123456789{}[]\",:-e. \\u\xff") + '\0';
      const int64_t at = random_below(key, 2 * edit, int64_t(file.size()));
      file[at] = alphabet[random_below(key, 2 * edit + 1, int64_t(alphabet.size()))];
    }
    const std::string path = folder.write("m.safetensors", file);
    try {
      const SafetensorsFile opened(path);
      for (const SafetensorsEntry& entry : opened.tensors()) {
        std::string bytes(entry.end - entry.begin, '\0');
        opened.read_bytes(entry, bytes.data());
      }
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
  EXPECT_LT(refused, 2000);
}

// A folder of two shards; the index is written by the test.
struct Shards {
  TempFolder folder;
  Shards() {
    const std::string word = bytes_of<float>({1});
    write_safetensors(folder / "one.safetensors", {{"a", SafetensorsType::F32, {1}, word}});
    write_safetensors(folder / "two.safetensors", {{"b", SafetensorsType::F32, {1}, word}});
  }
  void index(const std::string& json) const { folder.write("model.safetensors.index.json", json); }
  void refused(const std::string& json, std::initializer_list<std::string> parts) const {
    index(json);
    expect_error<DataError>([&] { SafetensorsFolder{folder.path()}; }, parts);
  }
};

TEST(SafetensorsFolder, ReadsShardsByTheirIndex) {
  const Shards shards;
  shards.index(R"({"metadata":{"total_size":8},
                   "weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  const SafetensorsFolder folder(shards.folder.path());
  ASSERT_EQ(folder.tensors().size(), 2u);
  float value = 0;
  const SafetensorsFolder::Tensor b = folder.tensors().at("b");
  b.file->read_values(*b.entry, DType::f32, &value);
  EXPECT_EQ(value, 1);
}

TEST(SafetensorsFolder, NamesFromTheIndexStayBeneathTheFolder) {
  const Shards shards;
  const std::string outside = shards.folder.path() + "/one.safetensors";
  shards.refused(R"({"weight_map":{"a":"../x"}})", {"'../x'", ".."});
  shards.refused(R"({"weight_map":{"a":"x/../one.safetensors"}})", {".."});
  shards.refused(R"({"weight_map":{"a":")" + outside + "\"}}", {"absolute"});
  shards.refused(R"({"weight_map":{"a":"one.safetensors\u0000x"}})", {"NUL"});
  shards.refused(R"({"weight_map":{"a":""}})", {"empty"});
  shards.refused(R"({"weight_map":{"a":")" + std::string(5000, 'x') + "\"}}", {"too long"});
  shards.refused(R"({"weight_map":{"a":7}})", {"'a'", "a string"});
  ASSERT_EQ(symlink("one.safetensors", (shards.folder / "link.safetensors").c_str()), 0);
  shards.refused(R"({"weight_map":{"a":"link.safetensors"}})", {"symbolic link", "cp -rL"});
  shards.index(R"({"weight_map":{"a":"absent.safetensors"}})");
  expect_error<IoError>([&] { SafetensorsFolder{shards.folder.path()}; }, {"absent.safetensors"});
}

TEST(SafetensorsFolder, IndexAndShardsMustAgree) {
  const Shards shards;
  shards.refused(R"({"weight_map":{"a":"two.safetensors"}})", {"'a'", "two.safetensors"});
  shards.refused(R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})",
                 {"'a'", "twice"});
  shards.refused(R"({"weight_map":{}, "weight_map":{}})", {"twice"});
  shards.refused(R"({"metadata":{}})", {"'weight_map' is missing"});
}

TEST(SafetensorsFolder, SaysWhatAFolderLacks) {
  const TempFolder folder;
  expect_error<IoError>([&] { SafetensorsFolder{folder.path()}; }, {"model.safetensors"});
  folder.write("pytorch_model.bin", "x");
  expect_error<IoError>([&] { SafetensorsFolder{folder.path()}; }, {"pickle"});
}

}  // namespace
}  // namespace sluice
