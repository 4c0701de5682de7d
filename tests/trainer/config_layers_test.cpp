// Base files, overrides, and the notations of model.stack across layers.
#include "trainer/config_layers.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "kernels/core/error.h"
#include "trainer/stack_notation.h"
#include "trainer/yaml_document.h"

namespace sluice::test {
namespace {

class ConfigLayers : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("sluice-layers-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_ / "sub");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& text) {
    const std::string path = (folder_ / name).string();
    std::ofstream(path) << text;
    return path;
  }
  ConfigNode load(const std::string& path, const std::vector<std::string>& overrides = {}) {
    ConfigNode tree = load_config_file(path, sources_);
    put_over(tree, parse_overrides(overrides, sources_));
    return tree;
  }
  std::string error_of(const std::string& path, const std::vector<std::string>& overrides = {}) {
    try {
      load(path, overrides);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  std::filesystem::path folder_;
  Sources sources_;
};

TEST_F(ConfigLayers, LaterWins) {
  write("base.yaml", "a: 1\nb: {c: 1, d: [1, 2]}\ne: 1\n");
  const std::string file = write("sub/run.yaml", "base: ../base.yaml\nb: {c: 2, d: [3]}\n");
  const ConfigNode tree = load(file, {"e=3"});
  EXPECT_EQ(to_json(tree, -1), R"({"a":1,"b":{"c":2,"d":[3]},"e":3})");
  EXPECT_EQ(origin_of(tree.find("a")->where), (folder_ / "base.yaml").string() + ":1");
  EXPECT_EQ(origin_of(tree.find_path("b.c")->where), file + ":2");
  EXPECT_EQ(origin_of(tree.find("e")->where), "override");
}

TEST_F(ConfigLayers, RefusesBadBases) {
  const std::string a = write("a.yaml", "base: b.yaml\n");
  const std::string b = write("b.yaml", "base: sub/../a.yaml\n");
  EXPECT_EQ(error_of(a), b + ":1:7: base: these files include each other in a circle\n"
                             "  base: sub/../a.yaml\n        ^");
  const std::string missing = write("c.yaml", "base: gone.yaml\n");
  EXPECT_EQ(error_of(missing), missing + ":1:7: base: no file " + folder_.string() +
                                   "/gone.yaml\n  base: gone.yaml\n        ^");
  EXPECT_NE(error_of(write("d.yaml", "base: [x]\n")).find("expected the path of a file"),
            std::string::npos);
  EXPECT_NE(error_of(write("e.yaml", ""), {"base=a.yaml"}).find("only a file can name its base"),
            std::string::npos);
}

TEST_F(ConfigLayers, RefusesFilesItCannotRead) {
  const auto code_of = [&](const std::string& path) {
    try {
      load(path);
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::ok;
  };
  EXPECT_EQ(code_of((folder_ / "gone.yaml").string()), ExitCode::io);
  EXPECT_EQ(code_of(folder_.string()), ExitCode::io);
  EXPECT_EQ(code_of(write("list.yaml", "- a\n")), ExitCode::usage);
  EXPECT_EQ(code_of(write("big.yaml", std::string(size_t(kMaxYamlBytes) + 1, '#'))),
            ExitCode::usage);
}

TEST_F(ConfigLayers, TwoNotationsInOneLayerAreRefused) {
  const std::string file = write("run.yaml", "model:\n  stack:\n    pattern: M-\n    layers: 2\n");
  EXPECT_EQ(error_of(file),
            file +
                ":4:5: model.stack is written in two notations: 'pattern' and 'layers'\n"
                "      layers: 2\n      ^\n"
                "  use one of: pattern | layers with attention.period | layers with "
                "attention.ratio | branches");
  const std::string both =
      write("both.yaml", "model: {stack: {layers: 2, attention: {period: 2, ratio: 0.5}}}\n");
  EXPECT_NE(error_of(both).find("two notations: 'attention.period' and 'attention.ratio'"),
            std::string::npos);
  EXPECT_NE(error_of(write("ok.yaml", ""), {"model.stack.pattern=M", "model.stack.ffn=mlp"})
                .find("two notations: 'pattern' and 'ffn'"),
            std::string::npos);
}

TEST_F(ConfigLayers, ALaterNotationDiscardsTheEarlierWhole) {
  write("base.yaml", "model: {d_model: 8, stack: {layers: 4, mixer: mamba, moe: {period: 2}}}\n");
  const std::string file = write("run.yaml", "base: base.yaml\nmodel: {stack: {ffn: mlp}}\n");
  EXPECT_EQ(to_json(load(file), -1),
            R"({"model":{"d_model":8,"stack":{"layers":4,"mixer":"mamba","moe":{"period":2},)"
            R"("ffn":"mlp"}}})");
  EXPECT_EQ(to_json(load(file, {"model.stack.pattern=*-M"}), -1),
            R"({"model":{"d_model":8,"stack":{"pattern":"*-M"}}})");
  const std::string period =
      write("period.yaml", "model: {stack: {layers: 4, attention: {period: 2}}}\n");
  EXPECT_EQ(to_json(load(period, {"model.stack.attention.ratio=0.5", "model.stack.layers=8"}), -1),
            R"({"model":{"stack":{"attention":{"ratio":0.5},"layers":8}}})");
  EXPECT_EQ(to_json(load(period, {"model.stack.attention.offset=1"}), -1),
            R"({"model":{"stack":{"layers":4,"attention":{"period":2,"offset":1}}}})");
}

TEST_F(ConfigLayers, OverridesTakeYamlOrText) {
  const ConfigNode tree =
      parse_overrides({"a=[1, {b: 2}]", "c=\"1\"", "d={e: f}", "g=x: y", "h=*-M", "i="}, sources_);
  EXPECT_EQ(to_json(tree, -1),
            R"({"a":[1,{"b":2}],"c":"1","d":{"e":"f"},"g":"x: y","h":"*-M","i":null})");
  EXPECT_THROW(parse_overrides({"a=[1"}, sources_), UsageError);
  std::string deep = "a";
  for (int i = 0; i < 100000; ++i) deep += ".a";
  EXPECT_THROW(parse_overrides({deep + "=1"}, sources_), UsageError);
}

}  // namespace
}  // namespace sluice::test
