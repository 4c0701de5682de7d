// The configuration machinery on small structs: every message that a bad configuration can get.
#include "trainer/config_reader.h"

#include <gtest/gtest.h>

#include "trainer/config_layers.h"
#include "trainer/yaml_document.h"

namespace sluice::test {

enum class Shape { round, square };
std::span<const char* const> enum_names(Shape) {
  static constexpr const char* kNames[] = {"round", "square"};
  return kNames;
}

struct Part {
  static constexpr const char* kShorthand = "path";
  std::string path;
  double weight = 1;
  template <class V>
  void fields(V&& v) {
    v(Field{.name = "path"}, path);
    v(Field{.name = "weight", .min = 0}, weight);
  }
};

struct Mixer {
  int64_t head_dim = 64;
  int64_t state_dim = 128;
  bool bias = false;
  Shape shape = Shape::round;
  template <class V>
  void fields(V&& v) {
    v(Field{.name = "head_dim", .min = 1, .max = 1024}, head_dim);
    v(Field{.name = "state_dim", .min = 1}, state_dim);
    v(Field{.name = "bias"}, bias);
    v(Field{.name = "shape"}, shape);
  }
  void validate() const {
    if (state_dim % head_dim != 0) throw FieldError("state_dim", "expected a multiple of head_dim");
  }
};

struct Whole {
  std::string name;
  int64_t width = 0;  // out of its own range: required
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.95};
  std::optional<int64_t> ranks;
  std::optional<double> limit;
  std::vector<Part> parts;
  std::vector<int64_t> sizes;
  Mixer mixer;
  template <class V>
  void fields(V&& v) {
    v(Field{.name = "name"}, name);
    v(Field{.name = "width", .help = "of the model", .min = 1}, width);
    v(Field{.name = "lr", .min = 0, .max = 10}, lr);
    v(Field{.name = "betas", .max = 1}, betas);
    v(Field{.name = "ranks", .min = 1, .unset = "auto"}, ranks);
    v(Field{.name = "limit"}, limit);
    v(Field{.name = "parts"}, parts);
    v(Field{.name = "sizes"}, sizes);
    v(Field{.name = "mixer"}, mixer);
  }
};

namespace {

Whole read(const std::string& text, const std::vector<std::string>& overrides = {},
           std::string* yaml = nullptr) {
  Sources sources;
  ConfigNode tree = parse_yaml(sources.add({.name = "run.yaml", .text = text}));
  put_over(tree, parse_overrides(overrides, sources));
  Whole whole;
  ConfigReader reader(tree);
  reader.read(whole);
  if (yaml != nullptr) *yaml = to_yaml(write_section(whole, reader.origins()), ShowOrigins::yes);
  return whole;
}

std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    read(text, overrides);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ConfigReader, ReadsEveryKindOfMember) {
  const Whole w = read(
      "name: a b\nwidth: 3e2\nlr: 1\nbetas: [0.5, 0.75]\nranks: 4\nlimit: .inf\n"
      "parts:\n  - one.h5\n  - {path: two.h5, weight: 2}\nsizes: [512k, 8GiB, 1e9, 2Mi, 1.5k]\n"
      "mixer: {head_dim: 32, bias: true, shape: square}\n");
  EXPECT_EQ(w.name, "a b");
  EXPECT_EQ(w.width, 300);
  EXPECT_EQ(w.lr, 1);
  EXPECT_EQ(w.betas[1], 0.75);
  EXPECT_EQ(w.ranks, 4);
  EXPECT_EQ(*w.limit, std::numeric_limits<double>::infinity());
  ASSERT_EQ(w.parts.size(), 2u);
  EXPECT_EQ(w.parts[0].path, "one.h5");
  EXPECT_EQ(w.parts[1].weight, 2);
  EXPECT_EQ(w.sizes, (std::vector<int64_t>{512000, int64_t{8} << 30, 1000000000, 2 << 20, 1500}));
  EXPECT_EQ(w.mixer.head_dim, 32);
  EXPECT_TRUE(w.mixer.bias);
  EXPECT_EQ(w.mixer.shape, Shape::square);
  EXPECT_EQ(w.mixer.state_dim, 128);
}

TEST(ConfigReader, AScalarStandsForAListOfOne) {
  const Whole w = read("width: 1\nparts: one.h5\n");
  ASSERT_EQ(w.parts.size(), 1u);
  EXPECT_EQ(w.parts[0].path, "one.h5");
}

TEST(ConfigReader, UnsetsOptionals) {
  EXPECT_FALSE(read("width: 1\nranks: 3\n", {"ranks=auto"}).ranks);
  EXPECT_FALSE(read("width: 1\nlimit: 3\n", {"limit=null"}).limit);
  EXPECT_FALSE(read("width: 1\nlimit: 3\n", {"limit="}).limit);
}

TEST(ConfigReader, OverridesWinAndReplaceLists) {
  const Whole w = read("width: 1\nsizes: [1, 2]\nmixer: {head_dim: 8, bias: true}\n",
                       {"mixer.head_dim=16", "sizes=[7]", "width=2", "width=3", "name=x=y"});
  EXPECT_EQ(w.mixer.head_dim, 16);
  EXPECT_TRUE(w.mixer.bias);
  EXPECT_EQ(w.sizes, std::vector<int64_t>{7});
  EXPECT_EQ(w.width, 3);
  EXPECT_EQ(w.name, "x=y");
}

TEST(ConfigReader, WritesOriginsAndReadsBack) {
  std::string yaml;
  read("width: 8\nname: 'yes'\nparts: [a.h5]\n", {"mixer.head_dim=32"}, &yaml);
  EXPECT_EQ(yaml,
            "name: \"yes\"         # run.yaml:2\n"
            "width: 8            # run.yaml:1\n"
            "lr: 0.001           # default\n"
            "betas: [0.9, 0.95]  # default\n"
            "ranks: auto         # default\n"
            "parts:\n"
            "  - path: a.h5      # run.yaml:3\n"
            "    weight: 1       # default\n"
            "sizes: []           # default\n"
            "mixer:\n"
            "  head_dim: 32      # override\n"
            "  state_dim: 128    # default\n"
            "  bias: false       # default\n"
            "  shape: round      # default\n");
  std::string again;
  read(yaml, {}, &again);
  const auto without_comments = [](std::string text) {
    size_t at;
    while ((at = text.find("  #")) != std::string::npos) {
      const size_t from = text.find_last_not_of(' ', at) + 1;
      text.erase(from, text.find('\n', at) - from);
    }
    return text;
  };
  EXPECT_EQ(without_comments(again), without_comments(yaml));
}

struct BadConfig {
  const char* name;
  std::string text;
  std::vector<std::string> overrides;
  std::string message;
};

class BadConfigs : public testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigs, GetExactlyThisMessage) {
  EXPECT_EQ(error_of(GetParam().text, GetParam().overrides), GetParam().message);
}

const std::string kLines = "width: 1\nmixer:\n  ";

INSTANTIATE_TEST_SUITE_P(
    Golden, BadConfigs,
    testing::Values(
        BadConfig{"UnknownKey",
                  kLines + "heads_dim: 64\n",
                  {},
                  "run.yaml:3:3: unknown key 'heads_dim' in mixer; did you mean 'head_dim'?\n"
                  "    heads_dim: 64\n"
                  "    ^\n"
                  "  valid keys: head_dim, state_dim, bias, shape"},
        BadConfig{"UnknownTopKey",
                  "widht: 1\n",
                  {},
                  "run.yaml:1:1: unknown key 'widht' at the top level; did you mean 'width'?\n"
                  "  widht: 1\n"
                  "  ^\n"
                  "  valid keys: name, width, lr, betas, ranks, limit, parts, sizes, mixer"},
        BadConfig{"KeyOfAnotherSection",
                  "width: 1\nhead_dim: 3\n",
                  {},
                  "run.yaml:2:1: unknown key 'head_dim' at the top level; did you mean "
                  "'mixer.head_dim'?\n"
                  "  head_dim: 3\n"
                  "  ^\n"
                  "  valid keys: name, width, lr, betas, ranks, limit, parts, sizes, mixer"},
        BadConfig{"MisspeltOverride",
                  "width: 1\n",
                  {"mixer.heda_dim=3"},
                  "command line: unknown key 'heda_dim' in mixer; did you mean 'head_dim'?\n"
                  "  mixer.heda_dim=3\n"
                  "        ^\n"
                  "  valid keys: head_dim, state_dim, bias, shape"},
        BadConfig{"NoOverride",
                  "width: 1\n",
                  {"width"},
                  "'width' is no override: expected dotted.key=value"},
        BadConfig{"EmptyKeyInOverride",
                  "width: 1\n",
                  {"mixer..bias=true"},
                  "command line: expected a key here: dotted.key=value\n"
                  "  mixer..bias=true\n"
                  "        ^"},
        BadConfig{"WrongType",
                  kLines + "head_dim: many\n",
                  {},
                  "run.yaml:3:13: mixer.head_dim: expected an integer from 1 to 1024, got 'many'\n"
                  "    head_dim: many\n"
                  "              ^"},
        BadConfig{"FractionForInteger",
                  kLines + "state_dim: 1.5\n",
                  {},
                  "run.yaml:3:14: mixer.state_dim: expected an integer of at least 1, got '1.5'\n"
                  "    state_dim: 1.5\n"
                  "               ^"},
        BadConfig{"LeadingZero",
                  kLines + "state_dim: 010\n",
                  {},
                  "run.yaml:3:14: mixer.state_dim: expected an integer of at least 1, got '010'; "
                  "write it without leading zeros\n"
                  "    state_dim: 010\n"
                  "               ^"},
        BadConfig{"QuotedNumber",
                  kLines + "state_dim: \"8\"\n",
                  {},
                  "run.yaml:3:14: mixer.state_dim: expected an integer of at least 1, got '8'\n"
                  "    state_dim: \"8\"\n"
                  "               ^"},
        BadConfig{"Overflow",
                  kLines + "state_dim: 9223372036854775808\n",
                  {},
                  "run.yaml:3:14: mixer.state_dim: expected an integer of at least 1, got "
                  "'9223372036854775808'\n"
                  "    state_dim: 9223372036854775808\n"
                  "               ^"},
        BadConfig{"OutOfRange",
                  kLines + "head_dim: 0\n",
                  {},
                  "run.yaml:3:13: mixer.head_dim: expected an integer from 1 to 1024, got '0'\n"
                  "    head_dim: 0\n"
                  "              ^"},
        BadConfig{"OutOfRangeOverride",
                  "width: 1\n",
                  {"lr=-1"},
                  "command line: lr: expected a number from 0 to 10, got '-1'\n"
                  "  lr=-1\n"
                  "     ^"},
        BadConfig{"NotANumber",
                  "width: 1\nlr: .nan\n",
                  {},
                  "run.yaml:2:5: lr: expected a number from 0 to 10, got '.nan'\n"
                  "  lr: .nan\n"
                  "      ^"},
        BadConfig{"InfinityOutOfRange",
                  "width: 1\nlr: .inf\n",
                  {},
                  "run.yaml:2:5: lr: expected a number from 0 to 10, got '.inf'\n"
                  "  lr: .inf\n"
                  "      ^"},
        BadConfig{"YesIsNoBool",
                  kLines + "bias: yes\n",
                  {},
                  "run.yaml:3:9: mixer.bias: expected true or false, got 'yes'\n"
                  "    bias: yes\n"
                  "          ^"},
        BadConfig{"NoSuchChoice",
                  kLines + "shape: squar\n",
                  {},
                  "run.yaml:3:10: mixer.shape: expected one of round, square, got 'squar'; did you "
                  "mean 'square'?\n"
                  "    shape: squar\n"
                  "           ^"},
        BadConfig{"MapForText",
                  "width: 1\nname: {a: b}\n",
                  {},
                  "run.yaml:2:7: name: expected a text, got a map of keys\n"
                  "  name: {a: b}\n"
                  "        ^"},
        BadConfig{"ScalarForSection",
                  "width: 1\nmixer: 3\n",
                  {},
                  "run.yaml:2:8: mixer: expected a section of keys, got '3'\n"
                  "  mixer: 3\n"
                  "         ^"},
        BadConfig{"ListForScalar",
                  "width: 1\nlr: [1]\n",
                  {},
                  "run.yaml:2:5: lr: expected a number from 0 to 10, got a list\n"
                  "  lr: [1]\n"
                  "      ^"},
        BadConfig{"ScalarForList",
                  "width: 1\nsizes: 3\n",
                  {},
                  "run.yaml:2:8: sizes: expected a list, got '3'\n"
                  "  sizes: 3\n"
                  "         ^"},
        BadConfig{"WrongLength",
                  "width: 1\nbetas: [0.5]\n",
                  {},
                  "run.yaml:2:8: betas: expected a list of 2 values, got 1\n"
                  "  betas: [0.5]\n"
                  "         ^"},
        BadConfig{"InAList",
                  "width: 1\nparts: [{path: a, wieght: 1}]\n",
                  {},
                  "run.yaml:2:19: unknown key 'wieght' in parts[0]; did you mean 'weight'?\n"
                  "  parts: [{path: a, wieght: 1}]\n"
                  "                    ^\n"
                  "  valid keys: path, weight"},
        BadConfig{"AutoOrInteger",
                  "width: 1\nranks: autp\n",
                  {},
                  "run.yaml:2:8: ranks: expected an integer of at least 1 or auto, got 'autp'\n"
                  "  ranks: autp\n"
                  "         ^"},
        BadConfig{"Required",
                  "lr: 1\n",
                  {},
                  "run.yaml: width is required: of the model, a number of at least 1"},
        BadConfig{"Validation",
                  kLines + "state_dim: 100\n",
                  {},
                  "run.yaml:3:3: mixer.state_dim: expected a multiple of head_dim\n"
                  "    state_dim: 100\n"
                  "    ^"},
        BadConfig{"ValidationOfADefault",
                  kLines + "head_dim: 100\n",
                  {},
                  "run.yaml:2:1: mixer.state_dim: expected a multiple of head_dim\n"
                  "  mixer:\n"
                  "  ^"}),
    [](const auto& info) { return info.param.name; });

// Unknown keys come first: they are often the cause of what validate() complains about.
TEST(ConfigReader, UnknownKeysBeforeValidation) {
  EXPECT_NE(error_of("mixer: {head_dim: 100}\nwdith: 1\n").find("unknown key 'wdith'"),
            std::string::npos);
}

TEST(ConfigReader, NamesTheKeysThatDiffer) {
  Whole a, b;
  b.mixer.bias = true;
  b.parts.push_back({.path = "x"});
  EXPECT_EQ(differing_keys(write_section(a), write_section(b)),
            (std::vector<std::string>{"parts", "mixer.bias", "parts[0].path", "parts[0].weight"}));
}

TEST(ConfigReader, JsonKeepsTypes) {
  Whole w;
  w.limit = std::numeric_limits<double>::infinity();
  w.name = "1";
  EXPECT_EQ(to_json(write_section(w), -1),
            R"({"name":"1","width":0,"lr":0.001,"betas":[0.9,0.95],"ranks":"auto","limit":".inf",)"
            R"("parts":[],"sizes":[],"mixer":{"head_dim":64,"state_dim":128,"bias":false,)"
            R"("shape":"round"}})");
}

}  // namespace
}  // namespace sluice::test
