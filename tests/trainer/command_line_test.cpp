// The command line without commands of its own: options, suggestions, errors.
#include "trainer/command_line.h"

#include <gtest/gtest.h>

#include <new>

#include "kernels/core/error.h"
#include "trainer/error_report.h"
#include "trainer/version.h"

namespace sluice::test {
namespace {

struct TryOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::string resume = "auto";
  int64_t steps = 3;
  double share = 0.5;
  bool json = false;
  std::vector<std::string> suffixes;
  void declare(OptionList& o) {
    o.positional("CONFIG", config, "YAML file");
    o.rest("OVERRIDES", overrides, "override");
    o.value("--resume", resume, "how to go on");
    o.value("--steps", steps, "how many", 1);
    o.value("--share", share, "of it", 0, 1);
    o.values("--suffix", suffixes, "of files");
    o.flag("--json", json, "print JSON");
  }
};

// The options that arguments give, or the error's text.
TryOptions parse(const std::vector<std::string>& arguments) {
  TryOptions options;
  OptionList list("try", "tries");
  options.declare(list);
  std::string help;
  EXPECT_TRUE(list.parse(arguments, &help));
  return options;
}

std::string error_of(const std::vector<std::string>& arguments) {
  try {
    parse(arguments);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(OptionList, FillsMembers) {
  const TryOptions o =
      parse({"run.yaml", "a.b=1", "--steps", "1e3", "--resume=never", "c=[1, 2]", "--json",
             "--suffix", ".txt", "--suffix", ".md", "--share", "0.25", "x=-1"});
  EXPECT_EQ(o.config, "run.yaml");
  EXPECT_EQ(o.overrides, (std::vector<std::string>{"a.b=1", "c=[1, 2]", "x=-1"}));
  EXPECT_EQ(o.steps, 1000);
  EXPECT_EQ(o.resume, "never");
  EXPECT_EQ(o.share, 0.25);
  EXPECT_TRUE(o.json);
  EXPECT_EQ(o.suffixes, (std::vector<std::string>{".txt", ".md"}));
}

TEST(OptionList, PointsAtMistakes) {
  EXPECT_EQ(error_of({"run.yaml", "--stpes", "5"}),
            "sluice try: no option '--stpes'; did you mean '--steps'?\n"
            "  options: --help, --resume, --steps, --share, --suffix, --json");
  EXPECT_EQ(error_of({"run.yaml", "--stpes=5"}),
            "sluice try: no option '--stpes'; did you mean '--steps'?\n"
            "  options: --help, --resume, --steps, --share, --suffix, --json");
  EXPECT_EQ(error_of({"run.yaml", "--steps", "0"}),
            "--steps: expected an integer of at least 1, got '0'");
  EXPECT_EQ(error_of({"run.yaml", "--steps", "many"}),
            "--steps: expected an integer of at least 1, got 'many'");
  EXPECT_EQ(error_of({"run.yaml", "--share", "2"}),
            "--share: expected a number from 0 to 1, got '2'");
  EXPECT_EQ(error_of({}), "sluice try: CONFIG is required\n  see: sluice try --help");
  EXPECT_EQ(error_of({"-q"}).substr(0, 26), "sluice try: no option '-q'");
  EXPECT_NE(error_of({"run.yaml", "--steps"}), "no error");
}

TEST(OptionList, HelpNamesEveryOption) {
  TryOptions options;
  OptionList list("try", "tries");
  options.declare(list);
  std::string help;
  EXPECT_FALSE(list.parse({"--unknown", "--help"}, &help));
  for (const char* word :
       {"CONFIG", "--resume", "--steps", "--share", "--json", "tries", "how many"}) {
    EXPECT_NE(help.find(word), std::string::npos) << word << "\n" << help;
  }
}

std::vector<Command> two_commands() {
  return {{"train", "trains",
           [](const Command&, const auto& arguments) { return int(arguments.size()); }},
          {"data build", "builds", [](const Command&, const auto&) { return 7; }}};
}

std::string command_error(const std::vector<std::string>& arguments) {
  try {
    run_command_line(two_commands(), arguments);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(CommandLine, FindsTheCommand) {
  EXPECT_EQ(run_command_line(two_commands(), {"train", "a", "b"}), 2);
  EXPECT_EQ(run_command_line(two_commands(), {"data", "build"}), 7);
  EXPECT_EQ(
      command_error({"trian"}),
      "expected a command, got 'trian'; did you mean 'train'?\n  commands: train, data build");
  EXPECT_EQ(command_error({}), "expected a command, got nothing\n  commands: train, data build");
  EXPECT_EQ(command_error({"data", "biuld"}),
            "sluice data: expected one of build, got 'biuld'; did you mean 'build'?");
  EXPECT_EQ(command_error({"data"}), "sluice data: expected one of build, got ''");
  EXPECT_EQ(command_error({"--verzion"}).substr(0, 35), "expected a command, got '--verzion'");
}

TEST(CommandLine, VersionHasALineEachPart) {
  const std::string text = version_text();
  for (const char* line :
       {"\nCUDA none\n", "\nNCCL none\n", "\nMPI ", "\ncuDNN none\n", "\noneDNN none\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << text;
  }
  EXPECT_EQ(text.substr(0, 7), "sluice ");
  EXPECT_NE(text.find("(commit "), std::string::npos);
}

TEST(ErrorReport, SaysWhatAndWhereInFewLines) {
  EXPECT_EQ(error_text(UsageError("no"), ""), "sluice: error: no\n");
  EXPECT_EQ(error_text(IoError("disk full"), "3"), "[rank 3] sluice: error: disk full\n");
  const std::string long_text = "1\n2\n3\n4\n5\n6\n7";
  EXPECT_EQ(error_text(DataError(long_text), ""), "sluice: error: 1\n2\n3\n4\n5\n");
  EXPECT_EQ(error_text(UsageError(long_text), "0"), "[rank 0] sluice: error: 1\n2\n3\n4\n5\n");
  EXPECT_EQ(error_text(UsageError(long_text), "1"), "[rank 1] sluice: error: 1\n");
  EXPECT_EQ(error_text(UsageError(""), ""), "sluice: error: \n");
}

TEST(ErrorReport, ExitCodes) {
  EXPECT_EQ(exit_code_of(UsageError("")), 2);
  EXPECT_EQ(exit_code_of(DataError("")), 65);
  EXPECT_EQ(exit_code_of(IoError("")), 74);
  EXPECT_EQ(exit_code_of(Error(ExitCode::not_finite, "")), 77);
  EXPECT_EQ(exit_code_of(std::bad_alloc()), 74);
  EXPECT_EQ(exit_code_of(std::runtime_error("?")), 70);
}

}  // namespace
}  // namespace sluice::test
