#include "trainer/json_file.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/error.h"
#include "tests/support/errors.h"

namespace sluice {
namespace {

using test::expect_error;

TEST(JsonFile, ReadsWhatJsonAllows) {
  const Json json = parse_json(R"( {"a": [1, -2, 3.5, true, null], "b": {"c": "\u00e9\n"}} )", "f");
  EXPECT_EQ(json["a"][1], -2);
  EXPECT_EQ(json["a"][2], 3.5);
  EXPECT_EQ(json["b"]["c"], "\xc3\xa9\n");
}

TEST(JsonFile, NamesTheByteOfASyntaxError) {
  expect_error<DataError>([] { parse_json(R"({"a": 1,})", "dir/config.json"); },
                          {"dir/config.json", "byte 9"});
  expect_error<DataError>([] { parse_json("", "f"); }, {"f: not JSON"});
  expect_error<DataError>([] { parse_json("{} {}", "f"); }, {"not JSON at byte 4"});
  expect_error<DataError>([] { parse_json("\"\xff\xfe\"", "f"); }, {"not JSON"});
}

TEST(JsonFile, RefusesDuplicateKeysDepthAndSize) {
  expect_error<DataError>([] { parse_json(R"({"k": 1, "k": 2})", "f"); }, {"'k'", "twice"});
  parse_json("[[[[]]]]", "f", {.max_depth = 4});
  expect_error<DataError>([] { parse_json("[[[[[]]]]]", "f", {.max_depth = 4}); }, {"4 deep"});
  expect_error<DataError>([] { parse_json(std::string(1'000'000, '['), "f"); }, {"32 deep"});
  expect_error<DataError>([] { parse_json("[1, 2, 3]", "f", {.max_values = 3}); }, {"3 values"});
  expect_error<DataError>([] { parse_json("[1, 2, 3]", "f", {.max_bytes = 8}); }, {"9 bytes"});
}

TEST(JsonFile, NonFiniteLiteralsOnlyWhereAskedFor) {
  const std::string text = R"([0.0, Infinity, -Infinity, NaN, "NaN \" Infinity"])";
  expect_error<DataError>([&] { parse_json(text, "f"); }, {"not JSON at byte"});
  const Json json = parse_json(text, "f", {.non_finite = true});
  EXPECT_EQ(json[1], INFINITY);
  EXPECT_EQ(json[2], -INFINITY);
  EXPECT_TRUE(std::isnan(json[3].get<double>()));
  EXPECT_EQ(json[4], "NaN \" Infinity");
  const Json object = parse_json(R"({"a": {"__float__": "Infinity"}, "b": {"__float__": "x"}})",
                                 "f", {.non_finite = true});
  EXPECT_EQ(object["a"], INFINITY);
  EXPECT_TRUE(object["b"].is_object());
  // The place of an error behind a rewritten literal is that of the file.
  expect_error<DataError>([] { parse_json("[Infinity, }", "f", {.non_finite = true}); },
                          {"byte 12"});
}

TEST(JsonFile, GettersNeverNarrow) {
  const Json json = parse_json(
      R"({"i": 5, "big": 9223372036854775808, "f": 3.7, "whole": 3.0, "s": "64", "n": null,
          "b": true, "l": [1], "exact": 9007199254740993})",
      "config.json");
  const JsonObject object(json, "config.json");
  EXPECT_EQ(object.integer("i"), 5);
  EXPECT_EQ(object.number("i"), 5.0);
  for (const char* key : {"f", "whole", "s", "n", "b", "l", "big", "absent"}) {
    expect_error<DataError>([&] { object.integer(key); }, {"config.json", key});
  }
  expect_error<DataError>([&] { object.integer("i", 6, 9); }, {"'i'", "[6, 9]", "5"});
  expect_error<DataError>([&] { object.number("exact"); }, {"'exact'"});
  expect_error<DataError>([&] { object.number("s"); }, {"'s'", "'64'"});
  expect_error<DataError>([&] { object.boolean("i"); }, {"'i'"});
  expect_error<DataError>([&] { object.string("i"); }, {"'i'"});
  expect_error<DataError>([&] { JsonObject(json["l"], "here"); }, {"here", "a list"});
  EXPECT_FALSE(object.has("n"));
}

TEST(JsonFile, RemembersWhichKeysWereRead) {
  const Json json = parse_json(R"({"a": 1, "b": 2, "c": null, "d": 4})", "f");
  const JsonObject object(json, "f");
  object.integer("a");
  object.has("d");
  EXPECT_EQ(object.unread(), std::vector<std::string>{"b"});
}

TEST(JsonFile, PrintableHidesWhatIsNotText) {
  EXPECT_EQ(printable(std::string("a\0\x1b\xff", 4)), "'a" + std::string(3, '?') + "'");
  EXPECT_EQ(printable(std::string(500, 'x')), "'" + std::string(80, 'x') + "...'");
}

}  // namespace
}  // namespace sluice
