#include "trainer/scalars.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "trainer/suggest.h"

namespace sluice::test {
namespace {

TEST(Scalars, Integers) {
  EXPECT_EQ(parse_integer("0"), 0);
  EXPECT_EQ(parse_integer("-12"), -12);
  EXPECT_EQ(parse_integer("+7"), 7);
  EXPECT_EQ(parse_integer("3e2"), 300);
  EXPECT_EQ(parse_integer("1.5e9"), 1500000000);
  EXPECT_EQ(parse_integer("9223372036854775807"), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(parse_integer("8GiB"), int64_t{8} << 30);
  EXPECT_EQ(parse_integer("512k"), 512000);
  EXPECT_EQ(parse_integer("0.5Ki"), 512);
  EXPECT_EQ(parse_integer("1TB"), 1000000000000);
  for (const char* bad : {"",     "-",        "+",   "010",   "-01",
                          "1.5",  "0x10",     "1e",  "e3",    "1e400",
                          ".",    "k",        "1 k", "1kk",   "9223372036854775808",
                          "1e19", "9999999T", "0b1", "1_000", "inf",
                          "nan",  "++1",      "+-1", "1K",    "B"}) {
    EXPECT_FALSE(parse_integer(bad)) << bad;
  }
}

TEST(Scalars, Numbers) {
  EXPECT_EQ(parse_number("1"), 1);
  EXPECT_EQ(parse_number(".5"), 0.5);
  EXPECT_EQ(parse_number("5."), 5);
  EXPECT_EQ(parse_number("-6.0e-4"), -6e-4);
  EXPECT_EQ(parse_number(".inf"), std::numeric_limits<double>::infinity());
  for (const char* bad : {"", ".nan", "nan", "inf", "0x1p3", "1e999", "00.5", "1,5", "1e+", "1k"}) {
    EXPECT_FALSE(parse_number(bad)) << bad;
  }
}

TEST(Scalars, FormattedNumbersReadBack) {
  EXPECT_EQ(format_number(1e-8), "1.0e-08");
  EXPECT_EQ(format_number(0.0006), "0.0006");
  EXPECT_EQ(format_number(2), "2");
  EXPECT_EQ(format_json_number(std::nan("")), "null");
  std::mt19937_64 random(3);
  for (int trial = 0; trial < 10000; ++trial) {
    const double value = std::bit_cast<double>(random());
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(parse_number(format_number(value)), value);
  }
}

TEST(Suggest, NearestWord) {
  EXPECT_EQ(edit_distance("head_dim", "heads_dim"), 1);
  EXPECT_EQ(edit_distance("trian", "train"), 1);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(nearest("trian", {"train", "plan"}), "train");
  EXPECT_EQ(nearest("micro-batch", {"micro_batch"}), "micro_batch");
  EXPECT_EQ(nearest("zzz", {"train", "plan"}), "");
  EXPECT_EQ(nearest("a", {"b"}), "");
}

}  // namespace
}  // namespace sluice::test
