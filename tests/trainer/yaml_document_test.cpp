// Hostile YAML: refused with line, column and caret, and fast.
#include "trainer/yaml_document.h"

#include <gtest/gtest.h>

#include <ctime>
#include <random>

#include "kernels/core/error.h"

namespace sluice::test {
namespace {

std::string error_of(const std::string& text) {
  Sources sources;
  try {
    parse_yaml(sources.add({.name = "x.yaml", .text = text}));
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

TEST(YamlDocument, RefusesWhatYamlCppIgnores) {
  EXPECT_EQ(error_of("a: 1\nb: 2\na: 3\n"),
            "x.yaml:3:1: duplicate key 'a', first on line 1\n  a: 3\n  ^");
  EXPECT_EQ(error_of("a: &x {b: 1}\nc:\n  <<: *x\n"),
            "x.yaml:3:3: merge keys (<<) are not supported\n    <<: *x\n    ^\n"
            "  write the keys out, or put them into a file and name it with 'base:'");
  EXPECT_EQ(error_of("a: 1\n---\nb: 2\n"),
            "x.yaml:2:1: a configuration is one document, and here a second begins\n  ---\n  ^");
  EXPECT_EQ(error_of("a: !!python/object x\n"),
            "x.yaml:1:4: tags are not used here, and this value has "
            "'tag:yaml.org,2002:python/object'\n  a: !!python/object x\n     ^");
}

TEST(YamlDocument, RefusesCyclesAndFloods) {
  EXPECT_EQ(first_line(error_of("a: &x\n  b: *x\n")),
            "x.yaml:2:6: this alias stands inside what it stands for");
  EXPECT_EQ(first_line(error_of("a: *nowhere\n")).substr(0, 29), "x.yaml:1:4: this is not YAML:");
  std::string laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n";
  for (int i = 1; i < 9; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    laughs += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + before;
    for (int j = 0; j < 9; ++j) laughs += ", " + before;
    laughs += "]\n";
  }
  EXPECT_NE(error_of(laughs).find("at most 100000 values"), std::string::npos);
  std::string many_keys;
  for (int i = 0; i < 300; ++i) many_keys += "k" + std::to_string(i) + ": 1\n";
  EXPECT_EQ(first_line(error_of(many_keys)), "x.yaml:257:1: a map has at most 256 keys");
}

TEST(YamlDocument, RefusesDepth) {
  std::string block, flow = "a: ";
  for (int i = 0; i < 70; ++i) {
    block += std::string(size_t(i), ' ') + "a:\n";
    flow += "[";
  }
  EXPECT_NE(error_of(block).find("nested at most 64 deep"), std::string::npos);
  EXPECT_NE(error_of(flow + std::string(70, ']')).find("nested at most 64 deep"),
            std::string::npos);
}

TEST(YamlDocument, RefusesBytesThatAreNoText) {
  EXPECT_EQ(first_line(error_of(std::string("a: 1\nb: \0\n", 10))),
            "x.yaml:2:4: a configuration is text, and here is a NUL byte");
  EXPECT_EQ(first_line(error_of("a: \"x\\0y\"\n")), "x.yaml:1:4: a value holds a NUL character");
  EXPECT_EQ(first_line(error_of("a: \xff\n")), "x.yaml:1:4: this is not UTF-8");
  EXPECT_EQ(first_line(error_of("a: \xc0\xaf\n")), "x.yaml:1:4: this is not UTF-8");
  EXPECT_EQ(error_of(std::string(size_t(kMaxYamlBytes) + 1, ' ')),
            "x.yaml: a configuration has at most 1048576 bytes, this one has 1048577");
  EXPECT_EQ(first_line(error_of("a:\n\t- b\n")).substr(0, 11), "x.yaml:2:2:");
}

TEST(YamlDocument, RefusesKeysThatAreNoWords) {
  EXPECT_EQ(first_line(error_of("[a]: 1\n")), "x.yaml:1:1: a key is a word, not a list or map");
  EXPECT_EQ(first_line(error_of("? {a: b}\n: 1\n")),
            "x.yaml:1:3: a key is a word, not a list or map");
}

TEST(YamlDocument, AcceptsWhatEditorsWrite) {
  Sources sources;
  const ConfigNode bom = parse_yaml(sources.add({.name = "x", .text = "\xef\xbb\xbfwidth: 1\r\n"}));
  ASSERT_EQ(bom.keys(), std::vector<std::string>{"width"});
  EXPECT_EQ(bom.find("width")->text, "1");
  EXPECT_TRUE(parse_yaml(sources.add({.name = "x", .text = "# nothing\n"})).is_map());
  const ConfigNode shared =
      parse_yaml(sources.add({.name = "x", .text = "a: &x [1, 2]\nb: *x\nc: ~\nd: 'null'\n"}));
  EXPECT_EQ(shared.find_path("b[1]")->text, "2");
  EXPECT_TRUE(shared.find("c")->is_null());
  EXPECT_TRUE(shared.find("d")->is_scalar());
}

TEST(YamlDocument, RefusesLongLines) {
  EXPECT_EQ(first_line(error_of("a: " + std::string(1025, '['))),
            "x.yaml:1:1028: a line opens at most 1024 lists and maps");
  EXPECT_EQ(first_line(error_of("a: 1\nb: " + std::string(size_t(kMaxYamlLine), 'x'))),
            "x.yaml:2:16385: a line has at most 16384 bytes");
  EXPECT_EQ(error_of("b: " + std::string(size_t(kMaxYamlLine) - 3, 'x') + "\nc: 1\n"), "no error");
}

#ifdef __SANITIZE_ADDRESS__
constexpr double kFloodSeconds = 5;
#else
constexpr double kFloodSeconds = 0.5;
#endif

// A megabyte of anything is read or refused at once.
TEST(YamlDocument, FloodsAreFast) {
  for (const char* unit :
       {"[", "{", "- ", "a: ", "? ", "&a ", "*a ", "\"", "a\n", "- a\n", "[a, ", "{a: ", "|\n ",
        "# \n", "!!a ", "\xc3\xa9", "--- \n", "%A\n", "[a]:\n"}) {
    for (const int64_t line : {kMaxYamlBytes, kMaxYamlLine}) {
      std::string text, part;
      while (int64_t(part.size() + 5) < line) part += unit;
      while (int64_t(text.size() + part.size()) < kMaxYamlBytes) text += part + "\n";
      const std::clock_t start = std::clock();
      error_of(text);
      EXPECT_LT(double(std::clock() - start) / CLOCKS_PER_SEC, kFloodSeconds) << unit;
    }
  }
}

TEST(YamlDocument, RandomBytesNeverCrash) {
  const std::string alphabet = "ab:- \n[]{},&*x!|>'\"#?%@`\t<~01.\\";
  std::mt19937 random(7);
  for (int trial = 0; trial < 20000; ++trial) {
    std::string text;
    const size_t length = random() % 60;
    for (size_t i = 0; i < length; ++i) text += alphabet[random() % alphabet.size()];
    error_of(text);  // throws nothing but UsageError
  }
}

}  // namespace
}  // namespace sluice::test
