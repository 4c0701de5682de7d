// Manifests that lie: every one is refused with the place named, before anything is opened or
// allocated by its numbers.
#include "trainer/checkpoint/manifest.h"

#include "data/files.h"
#include "tests/trainer/checkpoint/checkpoint_support.h"

namespace sluice::test {
namespace {

using nlohmann::json;

constexpr size_t kTail = 32 + 4;  // the hash's digits, and what follows them

// The text with its hash made right again.
std::string sign(std::string text) {
  text.replace(text.size() - kTail, 32, 32, '0');
  const std::string hash = xxh3_128_hex(text);
  return text.replace(text.size() - kTail, 32, hash);
}

// A document as a manifest's text, with its own hash.
std::string sign(json document) {
  document.erase("manifest_hash");
  std::string text = document.dump();
  text.pop_back();
  return sign(text + ",\n\"manifest_hash\": \"" + std::string(32, '0') + "\"\n}\n");
}

std::string good_text() {
  const TempFolder folder;
  return read_text(save(folder, 20, small_model(1), 2) + "/" + kManifestName);
}

json good_document() { return json::parse(good_text()); }

std::string refusal(const std::string& text) {
  return error_of([&] { parse_manifest(text, "M"); });
}

TEST(Manifest, GoodOnesPass) {
  EXPECT_EQ(parse_manifest(good_text(), "M").state.step, 20);
  EXPECT_EQ(parse_manifest(sign(good_document()), "M").tensors.size(), 15u);
}

// The first checkpoints did not say what they were computed on.
TEST(Manifest, MayNameNoDevice) {
  json document = good_document();
  EXPECT_NE(parse_manifest(sign(document), "M").state.runtime.device, "");
  document["runtime"].erase("device");
  EXPECT_EQ(parse_manifest(sign(document), "M").state.runtime.device, "");
}

struct Lie {
  const char* place;    // JSON pointer
  const char* value;    // JSON; "" to remove the member
  const char* message;  // what the refusal must say
};

// What gtest calls it.
void PrintTo(const Lie& lie, std::ostream* out) { *out << lie.place << " = " << lie.value; }

class Lies : public ::testing::TestWithParam<Lie> {};

TEST_P(Lies, AreRefusedByName) {
  const Lie lie = GetParam();
  json document = good_document();
  const json::json_pointer place(lie.place);
  if (*lie.value == '\0') {
    document.at(place.parent_pointer()).erase(place.back());
  } else {
    document[place] = json::parse(lie.value);
  }
  const std::string message = refusal(sign(document));
  EXPECT_TRUE(message.starts_with("M: ")) << message;
  EXPECT_TRUE(contains(message, lie.message)) << message;
}

const Lie kLies[] = {
    {"/step", "-1", "step: expected an integer from 0 to 9007199254740992, got -1"},
    {"/step", "1.5", "step: expected an integer"},
    {"/step", "\"20\"", "step: expected an integer"},
    {"/step", "null", "step: expected an integer"},
    {"/step", "18446744073709551615", "got 18446744073709551615"},
    {"/step", "", "has no \"step\""},
    {"/format", "\"other\"", "format: expected one of sluice checkpoint"},
    {"/format_version", "2", "format_version: expected 1, got 2"},
    {"/config", "\"model: {}\"", "config_hash: is not the hash"},
    {"/config_hash", "\"00\"", "config_hash: expected a hash"},
    {"/world_size", "0", "world_size: expected an integer from 1"},
    {"/mesh", "[]", "mesh: expected an object, got array"},
    {"/mesh/dp", "\"two\"", "mesh.dp: expected an integer"},
    {"/data", "[1]", "data: expected an object"},
    {"/rng/seed", "-1", "rng.seed: expected an integer from 0"},
    {"/rng/step", "", "rng: has no \"step\""},
    {"/optimizer", "3", "optimizer: expected an object, got 3"},
    {"/runtime/threads", "0", "runtime.threads"},
    {"/runtime/device", "8", "runtime.device: expected a string"},
    {"/loss", "\"much\"", "loss: expected a hexadecimal float"},
    {"/loss", "1.5", "loss: expected a string"},
    {"/files", "{}", "files: expected a list"},
    {"/files/0/name", "\"../model-0.h5\"", "files[0].name: not a plain file name"},
    {"/files/0/name", "\"/etc/passwd\"", "files[0].name: not a plain file name"},
    {"/files/0/name", "\"a/b.h5\"", "files[0].name: not a plain file name"},
    {"/files/0/name", "\"a\\u0000b.h5\"", "files[0].name: not a plain file name"},
    {"/files/0/name", "\"..\"", "files[0].name: not a plain file name"},
    {"/files/0/name", "\"\"", "files[0].name: not a plain file name"},
    {"/files/0/name", "\".hidden.h5\"", "files[0].name: not a plain file name"},
    {"/files/0/name", "\"optim-0.h5\"", "file optim-0.h5 is listed twice"},
    {"/files/0/bytes", "-5", "files[0].bytes: expected an integer"},
    {"/files/0/bytes", "9223372036854775808", "files[0].bytes: expected an integer"},
    {"/files/0/bytes", "100", "file model-0.h5 is too small"},
    {"/files/0/xxh3", "\"ABCDEF0123456789ABCDEF0123456789\"", "files[0].xxh3: expected a hash"},
    {"/tensors/0", "7", "tensors[0]: expected an object, got 7"},
    {"/tensors/0/name", "\"\"", "tensors[0].name: not a tensor's name"},
    {"/tensors/0/name", "\"a//b\"", "tensors[0].name: not a tensor's name"},
    {"/tensors/0/name", "\"a/../b\"", "tensors[0].name: not a tensor's name"},
    {"/tensors/0/name", "\"a\\nb\"", "tensors[0].name: not a tensor's name"},
    {"/tensors/0/name", "\"branches.1.scale\"", "tensor branches.1.scale is listed twice"},
    {"/tensors/0/dtype", "\"f16\"", "tensors[0].dtype: expected one of f64, f32"},
    {"/tensors/0/kind", "\"other\"", "tensors[0].kind: expected one of model, optim"},
    {"/tensors/0/shape", "[-37, 8]", "tensors[0].shape[0]: expected an integer"},
    {"/tensors/0/shape", "[37, 8.5]", "tensors[0].shape[1]: expected an integer"},
    {"/tensors/0/shape", "[1,1,1,1,37,8]", "tensors[0].shape: expected at most 5 entries"},
    {"/tensors/0/shape", "[4294967296, 4294967296]", "more than 2^53 elements"},
    {"/tensors/0/shape", "[9007199254740992, 9007199254740992]", "more than 2^53 elements"},
    {"/tensors/0/shape", "[36, 8]", "no part of a tensor (36, 8)"},
    {"/tensors/0/parts", "[{\"name\": \"z\"}]", "tensors[0].parts[0]: has no \"rows\""},
    {"/tensors/0/pieces", "[]", "element 0 of 296 is stored nowhere"},
    {"/tensors/0/pieces/0/range", "[0, 295]", "element 295 of 296 is stored nowhere"},
    {"/tensors/0/pieces/0/range", "[1, 296]", "element 0 of 296 is stored nowhere"},
    {"/tensors/0/pieces/0/range", "[5, 5]", "tensors[0].pieces[0]: no part"},
    {"/tensors/0/pieces/0/range", "[9, 5]", "tensors[0].pieces[0]: no part"},
    {"/tensors/0/pieces/0/range", "[0, 297]", "tensors[0].pieces[0]: no part"},
    {"/tensors/0/pieces/0/range", "[0]", "range: expected [begin, end]"},
    {"/tensors/0/pieces/0/range", "[0, 1, 2]", "range: expected at most 2 entries"},
    {"/tensors/0/pieces/0/box/start", "[1, 0]", "tensors[0].pieces[0]: no part"},
    {"/tensors/0/pieces/0/box/size", "[37]", "tensors[0].pieces[0]: no part"},
    {"/tensors/0/pieces/0/file", "\"model-9.h5\"", "its file model-9.h5 is not in the list"},
    {"/tensors/0/pieces/0/dataset", "\"../x\"", "dataset: not a tensor's name"},
    {"/tensors/0/pieces/0/dataset", "\"branches.0.norm.weight\"",
     "another piece has dataset branches.0.norm.weight"},
    {"/tensors/0/pieces/0/xxh3", "5", "xxh3: expected a string, got 5"},
};

INSTANTIATE_TEST_SUITE_P(Manifest, Lies, ::testing::ValuesIn(kLies));

TEST(Manifest, ElementsStoredTwiceAreRefused) {
  json document = good_document();
  json& pieces = document["tensors"][0]["pieces"];
  json twin = pieces[0];
  twin["range"] = {295, 296};
  twin["dataset"] = "twin";
  pieces.push_back(twin);
  EXPECT_TRUE(contains(refusal(sign(document)), "element 295 is stored twice, in model-0.h5"));
}

TEST(Manifest, LongNamesAreRefused) {
  json document = good_document();
  document["files"][0]["name"] = std::string(4096, 'a');
  EXPECT_TRUE(contains(refusal(sign(document)), "files[0].name: expected at most 512 bytes"));
}

TEST(Manifest, PiecesOfMillionsOfRunsAreRefused) {
  json document = good_document();
  json& tensor = document["tensors"][0];
  const int64_t rows = int64_t{1} << 30;
  tensor["shape"] = {rows, 2};
  tensor["pieces"][0]["box"] = {{"start", {0, 0}}, {"size", {rows, 1}}};
  tensor["pieces"][0]["range"] = {0, rows};
  document["files"][0]["bytes"] = rows * 16;
  EXPECT_TRUE(contains(refusal(sign(document)), "cut into more than"));
}

TEST(Manifest, DeepAndDoubledJsonIsRefused) {
  std::string text = good_text();
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  text.insert(2, "\"deep\": " + deep + ",\n");
  EXPECT_TRUE(contains(refusal(sign(text)), "nested more than 32 deep"));
  text = good_text();
  text.insert(2, "\"step\": 19,\n");
  EXPECT_TRUE(contains(refusal(sign(text)), "the key 'step' twice"));
  text = good_text();
  text.insert(2, "\"big\": 1e999,\n");
  EXPECT_TRUE(contains(refusal(sign(text)), "1e999"));
  text = good_text();
  text.insert(2, "\"broken\" 1,\n");
  EXPECT_TRUE(contains(refusal(sign(text)), "byte "));
}

TEST(Manifest, TheHashCoversEveryByte) {
  const std::string good = good_text();
  for (size_t place = 0; place < good.size(); place += 7) {
    std::string text = good;
    text[place] = char(text[place] ^ 1);
    const std::string message = refusal(text);
    EXPECT_TRUE(contains(message, "hash")) << message;
  }
  EXPECT_TRUE(contains(refusal(""), "cut off"));
}

// Random edits under a good hash: refused or read, never a crash.
TEST(Manifest, RandomEditsUnderAGoodHash) {
  const std::string good = good_text();
  constexpr std::string_view kBytes = "0123456789-.,:{}[]\"\\eE \n\x80tfn";
  Draws draws(8);
  int refused = 0;
  for (int trial = 0; trial < 1500; ++trial) {
    std::string text = good;
    for (int64_t edits = draws.between(1, 4); edits > 0; --edits) {
      const int64_t place = draws.below(int64_t(text.size() - 60));
      text[place] = kBytes[draws.below(int64_t(kBytes.size()))];
    }
    try {
      parse_manifest(sign(text), "M");
    } catch (const DataError&) {
      refused += 1;
    }
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace sluice::test
