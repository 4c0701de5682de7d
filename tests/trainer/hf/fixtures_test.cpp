// The six Hugging Face families against transformers' own logits, loss and gradients.
#include <gtest/gtest.h>

#include "data/hdf5_file.h"
#include "data/token_store.h"
#include "tests/support/errors.h"
#include "tests/support/hf_scores.h"
#include "trainer/hf/hf_model.h"

namespace sluice {
namespace {

using test::expect_error;
using test::expect_scores;
using test::ExpectedScores;
using test::fixture_folder;
using test::relative_error;
using test::TempFolder;

class HfFixtures : public testing::TestWithParam<const char*> {
 protected:
  ExpectedScores expected_{GetParam()};
  const std::string& folder_ = expected_.folder();
};

TEST_P(HfFixtures, LossLogitsAndGradients) { expect_scores(load_model(folder_), expected_); }

TEST_P(HfFixtures, InDoubleTheErrorIsTheReferences) {
  const LoadedModel loaded = load_model(folder_, DType::f64);
  const TokenRows rows = read_token_rows(folder_ + "/tokens.json", loaded.config.vocab_size);
  const Scores scores = score(loaded, rows, {.logits = true, .gradients = false});
  EXPECT_LE(relative_error(scores.logits.as<double>(), expected_.values("logits")),
            test::kFixtureLogits / 20);
}

TEST_P(HfFixtures, TheDumpsHoldWhatWasScored) {
  const TempFolder out;
  const LoadedModel loaded = load_model(folder_);
  const TokenRows rows = read_token_rows(folder_ + "/tokens.json", loaded.config.vocab_size);
  const Scores scores = score(loaded, rows, {.logits = true, .gradients = true});
  write_logits(out / "L.h5", scores);
  write_gradients(out / "G.h5", loaded, scores);
  std::vector<float> logits(scores.logits.numel());
  Hdf5Reader(out / "L.h5").read("logits", {2, 70, 96}, logits.data());
  EXPECT_TRUE(std::equal(logits.begin(), logits.end(), scores.logits.as<float>()));
  const Hdf5Reader gradients(out / "G.h5");
  EXPECT_EQ(gradients.datasets().size(), loaded.tensors.size());
  for (const SourceTensor& tensor : loaded.tensors) {
    std::vector<float> gradient(tensor.numel());
    gradients.read(tensor.name, tensor.shape, gradient.data());
    const TensorView flat = loaded.store->view(scores.gradients, tensor.parameter);
    EXPECT_TRUE(std::equal(gradient.begin(), gradient.end(), flat.as<float>() + tensor.begin));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, HfFixtures, testing::ValuesIn(test::kFamilies),
                         [](const auto& info) { return std::string(info.param); });

TEST(Score, RowsOfUnequalLengthAreDocumentsOfTheirOwn) {
  const LoadedModel loaded = load_model(fixture_folder("jamba"));
  const TokenRows rows = {{5, 6, 7, 8, 9}, {5, 6, 7}, {11}};
  const Scores all = score(loaded, rows, {});
  EXPECT_EQ(all.tokens, 9);
  EXPECT_EQ(all.targets, 6);
  const double first = score(loaded, {rows[0]}, {}).loss;
  const double second = score(loaded, {rows[1]}, {}).loss;
  EXPECT_NEAR(all.loss, (4 * first + 2 * second) / 6, 1e-12);
  expect_error<UsageError>([&] { score(loaded, rows, {.logits = true}); }, {"row 1 has 3"});
  expect_error<UsageError>([&] { score(loaded, {{11}}, {}); }, {"two tokens"});
}

TEST(Score, TokenFilesAreChecked) {
  const TempFolder folder;
  const auto refused = [&](const std::string& text, std::initializer_list<std::string> parts) {
    const std::string path = folder.write("tokens.json", text);
    expect_error<DataError>([&] { read_token_rows(path, 96); }, parts);
  };
  EXPECT_EQ(read_token_rows(folder.write("ok.json", "[[1,2],[95]]"), 96),
            (TokenRows{{1, 2}, {95}}));
  refused("[[1, 96]]", {"row 0, token 1", "[0, 95]", "96"});
  refused("[[1], [-1]]", {"row 1, token 0"});
  refused("[[1.5]]", {"row 0, token 0", "an integer"});
  refused("[[1], []]", {"row 1 is empty"});
  refused("[1, 2]", {"row 0", "a list"});
  refused("{\"a\": 1}", {"a list"});
  refused("[[[1]]]", {"deep"});
  refused("[[1]", {"not JSON"});
  expect_error<IoError>([&] { read_token_rows(folder / "absent.json", 96); }, {"absent.json"});
}

TEST(Score, EachDocumentOfATokenStoreIsARow) {
  const TempFolder folder;
  TokenStoreHeader header;
  header.vocab_size = 96;
  header.tokenizer = "test";
  header.tokenizer_hash = "0";
  header.end_of_document = 0;
  TokenStoreWriter writer(header);
  writer.add_document(std::vector<int32_t>{5, 6, 7});
  writer.add_document(std::vector<int32_t>{8});
  writer.finish(folder / "rows.h5");
  EXPECT_EQ(read_token_rows(folder / "rows.h5", 96), (TokenRows{{5, 6, 7, 0}, {8, 0}}));
  expect_error<DataError>([&] { read_token_rows(folder / "rows.h5", 95); }, {"96", "95"});
}

TEST(Score, APathThatIsNoModelSaysWhatIsNeeded) {
  const TempFolder folder;
  expect_error<UsageError>([&] { load_model(folder.path()); }, {folder.path(), "config.json"});
  expect_error<UsageError>([&] { load_model(folder / "absent"); }, {"no folder"});
}

}  // namespace
}  // namespace sluice
