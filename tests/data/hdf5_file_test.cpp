#include "data/hdf5_file.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "data/files.h"
#include "tests/data/data_support.h"

namespace sluice::test {
namespace {

template <class T>
std::vector<T> counting_up(int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = T(i * 37 + 1);
  return values;
}

template <class T>
class Hdf5Types : public testing::Test {};
using Types = testing::Types<float, double, int64_t, int32_t, uint32_t, uint16_t, uint8_t>;
TYPED_TEST_SUITE(Hdf5Types, Types);

TYPED_TEST(Hdf5Types, RoundTripInEveryRank) {
  using T = TypeParam;
  const TempFolder folder;
  // The last is cut into several chunks along two dims.
  const std::vector<std::vector<int64_t>> shapes = {
      {1}, {100003}, {3, 5}, {2, 3, 4}, {1, 2, 3, 4}, {5, 1, 2, 3, 2}, {3, 70001}, {1000, 129}};
  Hdf5Writer writer;
  for (size_t k = 0; k < shapes.size(); ++k) {
    const DatasetInfo info{.type = stored_type_of<T>, .dims = shapes[k]};
    writer.write("group/x" + std::to_string(k), shapes[k], counting_up<T>(info.numel()).data());
  }
  writer.finish_to(folder / "x.h5");
  const Hdf5Reader reader(folder / "x.h5");
  ASSERT_EQ(reader.datasets().size(), shapes.size());
  for (size_t k = 0; k < shapes.size(); ++k) {
    const Hdf5Dataset dataset = reader.dataset("group/x" + std::to_string(k));
    EXPECT_EQ(dataset.info().dims, shapes[k]);
    EXPECT_EQ(dataset.info().type, stored_type_of<T>);
    EXPECT_TRUE(dataset.checksummed());
    EXPECT_EQ(dataset.template read<T>(), counting_up<T>(dataset.info().numel()));
  }
}

TEST(Hdf5File, GrowsAndReadsRanges) {
  const TempFolder folder;
  const std::vector<int32_t> values = counting_up<int32_t>(1000);
  Hdf5Writer writer;
  writer.create_growing<int32_t>("x", 64);
  for (size_t begin = 0; begin < values.size(); begin += 77) {
    const size_t count = std::min<size_t>(77, values.size() - begin);
    writer.append<int32_t>("x", std::span(values).subspan(begin, count));
  }
  writer.finish_to(folder / "x.h5");
  const Hdf5Dataset dataset = Hdf5Reader(folder / "x.h5").dataset("x");  // outlives its reader
  EXPECT_EQ(dataset.chunk(), 64);
  EXPECT_EQ(dataset.read<int32_t>(), values);
  for (const auto& [begin, count] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 1}, {63, 2}, {64, 64}, {999, 1}, {1000, 0}, {100, 700}}) {
    std::vector<int32_t> part(static_cast<size_t>(count));
    dataset.read_range(begin, count, part.data());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), values.begin() + begin));
  }
  int32_t none = 0;
  EXPECT_THROW(dataset.read_range(999, 2, &none), Error);
  EXPECT_THROW(dataset.read_range(-1, 1, &none), Error);
  int64_t wide = 0;
  EXPECT_THROW(dataset.read_range(0, 1, &wide), Error);
}

TEST(Hdf5File, Attributes) {
  const TempFolder folder;
  const std::string long_text(200'000, 'x');
  Hdf5Writer writer;
  writer.set_attribute("negative", int64_t{-5});
  writer.set_attribute("empty", std::string());
  writer.set_attribute("utf8", std::string("h\u00f6\u20ac"));
  writer.set_attribute("long", long_text);
  EXPECT_THROW(writer.set_attribute("nul", std::string("a\0b", 3)), Error);
  writer.finish_to(folder / "x.h5");
  const Hdf5Reader reader(folder / "x.h5");
  EXPECT_EQ(reader.int_attribute("negative"), -5);
  EXPECT_EQ(reader.string_attribute("empty"), "");
  EXPECT_EQ(reader.string_attribute("utf8"), "h\u00f6\u20ac");
  EXPECT_EQ(reader.string_attribute("long"), long_text);
  EXPECT_TRUE(reader.has_attribute("long"));
  EXPECT_FALSE(reader.has_attribute("short"));
  expect_error<DataError>([&] { reader.int_attribute("absent"); }, {folder / "x.h5", "absent"});
  expect_error<DataError>([&] { reader.int_attribute("utf8"); }, {"utf8", "i64"});
  expect_error<DataError>([&] { reader.string_attribute("negative"); }, {"negative", "string"});
}

TEST(Hdf5File, EqualContentGivesEqualBytes) {
  const auto build = [] {
    Hdf5Writer writer;
    writer.set_attribute("a", int64_t{1});
    writer.write("x/y", {701, 301}, counting_up<float>(701 * 301).data());
    writer.create_growing<int64_t>("z", 5000);
    writer.append<int64_t>("z", counting_up<int64_t>(7));
    return std::string(writer.finish());
  };
  const std::string first = build();
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // times have whole seconds
  const std::string second = build();
  EXPECT_TRUE(first == second);
}

TEST(Hdf5File, WhatIsExpectedIsCheckedFirst) {
  const TempFolder folder;
  Hdf5Writer writer;
  writer.write("x", {2, 3}, counting_up<float>(6).data());
  writer.finish_to(folder / "x.h5");
  const Hdf5Reader reader(folder / "x.h5");
  std::vector<float> values(6);
  reader.read("x", {2, 3}, values.data());
  EXPECT_EQ(values, counting_up<float>(6));
  expect_error<DataError>(
      [&] {
        reader.read("x", {3, 2}, values.data());
      },
      {folder / "x.h5", "/x", "expected f32 (3, 2), got f32 (2, 3)"});
  expect_error<DataError>(
      [&] {
        reader.dataset("x", StoredType::f64, {2, 3});
      },
      {"expected f64 (2, 3), got f32 (2, 3)"});
  expect_error<DataError>([&] { reader.dataset("y"); }, {"no dataset /y"});
}

TEST(Hdf5File, UnreadableFiles) {
  const TempFolder folder;
  expect_error<IoError>([&] { Hdf5Reader(folder / "none.h5"); }, {folder / "none.h5"});
  expect_error<IoError>([&] { Hdf5Reader reader(folder.path()); }, {"not a regular file"});
  write_file(folder / "empty.h5", "");
  expect_error<DataError>([&] { Hdf5Reader(folder / "empty.h5"); }, {"empty.h5", "0 bytes"});
  write_file(folder / "text.h5", std::string(5000, 't'));
  expect_error<DataError>([&] { Hdf5Reader(folder / "text.h5"); }, {"text.h5", "not an HDF5"});
}

TEST(Hdf5File, ThreadsReadAndWriteAtOnce) {
  const TempFolder folder;
  const auto work = [&](int thread) {
    const std::string path = folder / std::to_string(thread);
    for (int round = 0; round < 10; ++round) {
      const std::vector<double> values(5000, thread * 100 + round);
      Hdf5Writer writer;
      writer.write("x", {5000}, values.data());
      writer.finish_to(path);
      EXPECT_EQ(Hdf5Reader(path).dataset("x").read<double>(), values);
      EXPECT_THROW(Hdf5Reader(path).dataset("y"), DataError);
    }
  };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) threads.emplace_back(work, thread);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace sluice::test
