// Import of Hugging Face folders, and score and import as the shell sees them.
#include "trainer/hf/import_hf.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstring>

#include "data/hdf5_file.h"
#include "kernels/core/error.h"
#include "tests/support/errors.h"
#include "tests/support/fixtures.h"
#include "tests/support/tolerance.h"
#include "trainer/hf/safetensors.h"
#include "trainer/json_file.h"
#include "trainer/model_source.h"
#include "trainer/score.h"

namespace sluice {
namespace {

using test::expect_error;
using test::fixture_folder;
using test::TempFolder;

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

TEST(ImportHf, ACheckpointComputesWhatTheFolderComputes) {
  for (const char* family : test::kFamilies) {
    const TempFolder folder;
    const HfImport result = import_hf(fixture_folder(family), folder / "out");
    ASSERT_TRUE(result.logits_error.has_value());
    EXPECT_LE(*result.logits_error, test::kFixtureLogits);
    EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"out"});

    const LoadedModel before = load_model(fixture_folder(family));
    const LoadedModel after = load_model(folder / "out");
    ASSERT_EQ(after.store->flat_size(), before.store->flat_size());
    EXPECT_EQ(std::memcmp(after.store->values().data, before.store->values().data,
                          size_t(before.store->flat_size()) * 4),
              0)
        << family;
    const TokenRows rows = {{5, 6, 7, 8, 9, 10, 11}};
    EXPECT_EQ(score(after, rows, {}).loss, score(before, rows, {}).loss) << family;
  }
}

TEST(ImportHf, GradientsOfACheckpointHaveItsOwnNames) {
  const TempFolder folder;
  import_hf(fixture_folder("mamba2"), folder / "out");
  const LoadedModel loaded = load_model(folder / "out");
  const Scores scores = score(loaded, {{5, 6, 7}}, {.logits = false, .gradients = true});
  write_gradients(folder / "G.h5", loaded, scores);
  const Hdf5Reader file(folder / "G.h5");
  EXPECT_TRUE(file.has("branches.0.mamba2.in_proj.weight"));
  EXPECT_EQ(file.datasets().size(), loaded.store->parameters().size());
}

TEST(ImportHf, LogitsThatDifferLeaveNothingBehind) {
  const TempFolder folder;
  const std::string copy = folder / "mamba";
  std::filesystem::copy(fixture_folder("mamba"), copy);
  Json config = test::fixture_config("mamba", {{"layer_norm_epsilon", 1e-2}});
  folder.write("mamba/config.json", config.dump());
  expect_error<DataError>([&] { import_hf(copy, folder / "out"); }, {"the logits differ by"});
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"mamba"});
}

TEST(ImportHf, TheOutputMustBeNew) {
  const TempFolder folder;
  folder.write("out", "precious");
  expect_error<UsageError>([&] { import_hf(fixture_folder("mamba"), folder / "out"); },
                           {folder / "out", "exists"});
  EXPECT_EQ(test::read_text(folder / "out"), "precious");
  expect_error<UsageError>([&] { import_hf(folder.path(), folder / "new"); }, {"config.json"});
  expect_error<IoError>([&] { import_hf(fixture_folder("mamba"), folder / "out/below"); }, {"out"});
}

struct Outcome {
  int code = -1;
  std::string out;
};

// `sluice ARGUMENTS`, stderr with stdout.
Outcome run_sluice(const std::string& arguments) {
  const std::string command = SLUICE_BINARY_DIR "/bin/sluice " + arguments + " 2>&1";
  std::FILE* const pipe = popen(command.c_str(), "r");
  SLUICE_CHECK(pipe != nullptr, "cannot run ", command);
  Outcome outcome;
  char buffer[4096];
  while (const size_t bytes = std::fread(buffer, 1, sizeof(buffer), pipe)) {
    outcome.out.append(buffer, bytes);
  }
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

TEST(ScoreCommand, PrintsTheLossAndWritesBothDumps) {
  const TempFolder out;
  const std::string folder = fixture_folder("nemotron_h");
  const Outcome outcome =
      run_sluice("score " + folder + " --tokens " + folder + "/tokens.json --logits " +
                 (out / "L.h5") + " --grads " + (out / "G.h5") + " --json");
  ASSERT_EQ(outcome.code, 0) << outcome.out;
  const Json json = parse_json(outcome.out, "stdout");
  const SafetensorsFile expected(folder + "/expected.safetensors");
  float loss = 0;
  expected.read_values(*expected.find("loss"), DType::f32, &loss);
  EXPECT_NEAR(json["loss"].get<double>(), loss, test::kFixtureLoss);
  EXPECT_EQ(json["targets"], 138);
  EXPECT_EQ(Hdf5Reader(out / "L.h5").dataset("logits").info().dims,
            (std::vector<int64_t>{2, 70, 96}));
  EXPECT_TRUE(Hdf5Reader(out / "G.h5").has("backbone.layers.0.mixer.in_proj.weight"));
}

TEST(ScoreCommand, BadInputLeavesByItsExitCode) {
  const TempFolder out;
  const std::string mamba = fixture_folder("mamba");
  const std::string tokens = " --tokens " + mamba + "/tokens.json";
  EXPECT_EQ(run_sluice("score " + out.path() + tokens).code, 2);
  EXPECT_EQ(run_sluice("score " + mamba + " --tokens " + (out / "absent.json")).code, 74);
  EXPECT_EQ(run_sluice("score " + mamba + " --tokens " + out.write("t.json", "[[96]]")).code, 65);
  std::filesystem::copy(mamba, out / "cut");
  std::filesystem::resize_file(out / "cut/model.safetensors", 1000);
  const Outcome cut = run_sluice("score " + (out / "cut") + tokens);
  EXPECT_EQ(cut.code, 65);
  EXPECT_NE(cut.out.find("cut/model.safetensors"), std::string::npos) << cut.out;
  const Outcome unwritable = run_sluice("score " + mamba + tokens + " --logits /proc/none/L.h5");
  EXPECT_EQ(unwritable.code, 74) << unwritable.out;
  EXPECT_NE(unwritable.out.find("/proc/none"), std::string::npos) << unwritable.out;
}

TEST(ImportCommand, SaysWhatItDidAndWhatDiffers) {
  const TempFolder out;
  const Outcome outcome = run_sluice("import " + fixture_folder("jamba") + " " + (out / "model"));
  EXPECT_EQ(outcome.code, 0) << outcome.out;
  EXPECT_NE(outcome.out.find("logits agree"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("pad_token_id"), std::string::npos) << outcome.out;
  const Outcome again = run_sluice("import " + fixture_folder("jamba") + " " + (out / "model"));
  EXPECT_EQ(again.code, 2);
}

}  // namespace
}  // namespace sluice
