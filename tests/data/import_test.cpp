#include "data/import.h"

#include <gtest/gtest.h>

#include <set>

#include "data/text_source.h"
#include "kernels/core/rng.h"
#include "tests/data/data_support.h"

namespace sluice::test {
namespace {

using Texts = std::vector<std::string>;

// Lines of pseudo-random words.
std::string prose(uint64_t seed, size_t bytes) {
  std::string text;
  for (uint64_t draw = 0; text.size() < bytes; ++draw) {
    const auto bits = random_bits({.seed = seed}, draw);
    for (uint32_t letter = 0; letter < 2 + bits[0] % 6; ++letter)
      text += char('a' + (bits[1] >> (4 * letter)) % 26);
    text += bits[2] % 9 == 0 ? '\n' : ' ';
  }
  text.resize(bytes);
  return text;
}

BuildOptions options(const TempFolder& folder, const std::vector<std::string>& inputs) {
  BuildOptions built;
  for (const std::string& input : inputs) built.inputs.push_back(folder / input);
  built.output = folder / "train.h5";
  return built;
}

BuildOptions split_options(const TempFolder& folder, const std::vector<std::string>& inputs,
                           double fraction) {
  BuildOptions built = options(folder, inputs);
  built.valid_output = folder / "valid.h5";
  built.valid_fraction = fraction;
  return built;
}

TEST(Import, FilesAndFoldersInOrder) {
  const TempFolder folder;
  write_file(folder / "texts/b.txt", "bb");
  const std::string binary("\xff\xfe\0 not UTF-8", 13);
  write_file(folder / "texts/a/z.txt", binary);
  write_file(folder / "texts/a/empty.txt", "");
  write_file(folder / "texts/.git/config", "hidden");
  write_file(folder / "texts/.hidden", "hidden");
  write_file(folder / "texts/old.gz", "compressed");
  write_file(folder / "texts/c.md", "cc");
  write_file(folder / "one", "11");
  std::filesystem::create_symlink(folder / "one", folder / "texts/link.txt");
  const BuildSummary summary = build_store(options(folder, {"one", "texts"}));
  EXPECT_EQ(read_texts(folder / "train.h5"), (Texts{"11", binary, "bb", "cc"}));
  EXPECT_EQ(summary.files, 5);
  EXPECT_EQ(summary.empty_documents, 1);
  EXPECT_EQ(summary.train.documents, 4);
  EXPECT_EQ(summary.train.tokens, summary.train.text_bytes + 4);
  EXPECT_TRUE(summary.valid.path.empty());
  BuildOptions only_md = options(folder, {"texts"});
  only_md.suffixes = {".md"};
  build_store(only_md);
  EXPECT_EQ(read_texts(folder / "train.h5"), Texts{"cc"});
}

TEST(Import, Jsonl) {
  const TempFolder folder;
  const std::string big(3 << 20, 'x');  // several reads ahead
  write_file(folder / "x.jsonl",
             "{\"id\": 1, \"text\": \"a\\n\\u20ac\", \"meta\": {\"text\": [1, {\"text\": 2}]}}\r\n"
             "\n"
             "{\"text\": \"\"}\n"
             "{\"text\": \"" +
                 big +
                 "\"}\n"
                 "{\"text\": \"no newline at the end\"}");
  build_store(options(folder, {"x.jsonl"}));
  EXPECT_EQ(read_texts(folder / "train.h5"), (Texts{"a\n\u20ac", big, "no newline at the end"}));
  // Line ends around the edge of a read of 1 MiB.
  for (size_t length = (1 << 20) - 2; length <= (1 << 20) + 2; ++length) {
    const std::string text(length - std::string("{\"text\": \"\"}").size(), 'y');
    write_file(folder / "edge.jsonl", "{\"text\": \"" + text + "\"}\n{\"text\": \"z\"}\n");
    build_store(options(folder, {"edge.jsonl"}));
    EXPECT_TRUE(read_texts(folder / "train.h5") == (Texts{text, "z"})) << length;
  }
  write_file(folder / "y.jsonl", "{\"body\": \"b\"}\n");
  BuildOptions body = options(folder, {"y.jsonl"});
  body.jsonl_field = "body";
  build_store(body);
  EXPECT_EQ(read_texts(folder / "train.h5"), Texts{"b"});
}

TEST(Import, JsonlErrorsNameFileAndLine) {
  const TempFolder folder;
  const auto refused = [&](const std::string& line, std::vector<std::string> words) {
    write_file(folder / "bad.jsonl",
               "{\"text\": \"fine\"}\n\n" + line + "\n{\"text\": \"fine\"}\n");
    words.push_back(folder / "bad.jsonl:3: ");
    expect_error<DataError>([&] { build_store(options(folder, {"bad.jsonl"})); }, words);
    EXPECT_FALSE(std::filesystem::exists(folder / "train.h5"));
  };
  refused("{\"text\": \"open", {"parse error"});
  refused("{\"text\": \"a\"} x", {"parse error"});
  refused("{\"text\": \"\xff\"}", {"UTF-8"});
  refused("{\"txt\": \"a\"}", {"expected an object with a string \"text\""});
  refused("{\"text\": 5}", {"\"text\" is not a string"});
  refused("{\"text\": null}", {"\"text\" is not a string"});
  refused("{\"text\": [\"a\"]}", {"\"text\" is not a string"});
  refused("{\"text\": \"a\", \"text\": \"b\"}", {"two of \"text\""});
  refused("[\"text\"]", {"expected an object"});
  refused("\"text\"", {"expected an object"});
  refused("{\"a\": " + std::string(100'000, '[') + "}", {"nested deeper"});
}

// A corpus of many documents, in two arrangements.
TEST(Import, TheSplitDependsOnTheTextsAlone) {
  const TempFolder folder;
  std::string lines;
  for (uint64_t d = 0; d < 400; ++d) {
    const std::string text = prose(d, 50 + d % 100);
    write_file(folder / ("texts/" + std::to_string(d % 7) + "/" + std::to_string(d)), text);
    nlohmann::json line = {{"text", text}};
    lines = line.dump() + "\n" + lines;
  }
  write_file(folder / "lines.jsonl", lines);
  const BuildSummary first = build_store(split_options(folder, {"texts"}, 0.1));
  EXPECT_EQ(first.split_documents, 0);
  Texts train = read_texts(folder / "train.h5");
  Texts valid = read_texts(folder / "valid.h5");
  EXPECT_EQ(train.size() + valid.size(), 400u);
  EXPECT_GT(valid.size(), 20u);
  EXPECT_LT(valid.size(), 80u);
  build_store(split_options(folder, {"lines.jsonl"}, 0.1));
  Texts train_again = read_texts(folder / "train.h5");
  Texts valid_again = read_texts(folder / "valid.h5");
  for (Texts* texts : {&train, &valid, &train_again, &valid_again})
    std::sort(texts->begin(), texts->end());
  EXPECT_EQ(train, train_again);
  EXPECT_EQ(valid, valid_again);
}

TEST(Import, OneLongDocumentIsCutForAHeldOutPart) {
  const TempFolder folder;
  const std::string text = prose(1, 300'000);
  write_file(folder / "one.txt", text);
  const BuildSummary summary = build_store(split_options(folder, {"one.txt"}, 0.1));
  EXPECT_GT(summary.split_documents, 0);
  const double share = double(summary.valid.text_bytes) / double(text.size());
  EXPECT_GT(share, 0.03);
  EXPECT_LT(share, 0.2);
  EXPECT_EQ(summary.valid.text_bytes + summary.train.text_bytes, int64_t(text.size()));
  const Texts train = read_texts(folder / "train.h5");
  const Texts valid = read_texts(folder / "valid.h5");
  // The pieces lie in the text in order and do not overlap.
  for (const Texts* part : {&train, &valid}) {
    size_t at = 0;
    for (const std::string& piece : *part) {
      EXPECT_LE(piece.size(), size_t(summary.split_documents));
      at = text.find(piece, at);
      ASSERT_NE(at, std::string::npos);
      at += piece.size();
    }
  }
}

TEST(Import, EvenASmallCorpusHasBothParts) {
  const TempFolder folder;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    write_file(folder / "one.txt", prose(seed, 200));
    const BuildSummary summary = build_store(split_options(folder, {"one.txt"}, 0.01));
    EXPECT_GT(summary.valid.documents, 0);
    EXPECT_GT(summary.train.documents, 0);
  }
  write_file(folder / "tiny.txt", "tiny");
  expect_error<UsageError>([&] { build_store(split_options(folder, {"tiny.txt"}, 0.1)); },
                           {"4 bytes", "too few"});
}

TEST(Import, SplitDocuments) {
  const TempFolder folder;
  const std::string text = prose(3, 2'500'000);
  write_file(folder / "x.txt", text);
  write_file(folder / "x.jsonl", nlohmann::json{{"text", text}}.dump());
  for (const char* input : {"x.txt", "x.jsonl"}) {
    BuildOptions split = options(folder, {input});
    split.split_documents = 1000;
    build_store(split);
    const Texts pieces = read_texts(folder / "train.h5");
    std::string joined;
    size_t line_ends = 0;
    for (const std::string& piece : pieces) {
      EXPECT_LE(piece.size(), 1000u);
      line_ends += piece.back() == '\n' ? 1 : 0;
      joined += piece;
    }
    EXPECT_EQ(joined, text);
    EXPECT_GT(line_ends, pieces.size() * 9 / 10);
  }
}

TEST(Import, CutsKeepCharactersWhole) {
  EXPECT_EQ(cut_length("abcdefgh", 4), 4u);
  EXPECT_EQ(cut_length("abcdefg\nh", 8), 8u);  // after the line's end
  EXPECT_EQ(cut_length("a\nbcdefgh", 8), 8u);  // too far back
  EXPECT_EQ(cut_length("abc\u20acd", 4), 3u);  // three bytes from 3
  EXPECT_EQ(cut_length("abc\u20acd", 5), 3u);
  EXPECT_EQ(cut_length("abc\u20acd", 6), 6u);
  EXPECT_EQ(cut_length("\x80\x80\x80\x80\x80\x80", 4), 4u);  // no character: as asked
  EXPECT_EQ(cut_length("\u20ac", 1), 1u);
}

TEST(Import, MistakesAreFoundBeforeReading) {
  const TempFolder folder;
  write_file(folder / "x.txt", "text");
  write_file(folder / "x.gz", "text");
  std::filesystem::create_directory(folder / "none");
  using Change = std::function<void(BuildOptions&)>;
  const auto usage = [&](const Change& change, const std::vector<std::string>& words) {
    BuildOptions changed = options(folder, {"x.txt"});
    change(changed);
    expect_error<UsageError>([&] { build_store(changed); }, words);
  };
  const auto io = [&](const Change& change, const std::vector<std::string>& words) {
    BuildOptions changed = options(folder, {"x.txt"});
    change(changed);
    expect_error<IoError>([&] { build_store(changed); }, words);
  };
  usage([](auto& o) { o.inputs = {}; }, {"no inputs"});
  usage([](auto& o) { o.output = ""; }, {"no output"});
  usage([](auto& o) { o.valid_fraction = 0.1; }, {"held-out"});
  usage([&](auto& o) { o.valid_output = folder / "v.h5"; }, {"held-out"});
  usage([](auto& o) { o.valid_fraction = 1.5; }, {"1.5"});
  usage([](auto& o) { o.split_documents = -1; }, {"-1"});
  usage([](auto& o) { o.tokenizer = "bpe"; }, {"bpe"});
  usage([&](auto& o) { o.output = folder / "x.txt"; }, {"is an input too"});
  usage([&](auto& o) { o.output = folder / "none"; }, {"is a folder"});
  usage([&](auto& o) { o.inputs = {folder / "x.gz"}; }, {"x.gz", "decompress"});
  usage([&](auto& o) { o.inputs = {folder / "none"}; }, {"none", "no text files"});
  usage(
      [&](auto& o) {
        o.valid_output = o.output;
        o.valid_fraction = 0.5;
      },
      {"one file"});
  io([&](auto& o) { o.inputs = {folder / "absent"}; }, {folder / "absent"});
  io([&](auto& o) { o.output = folder / "absent/x.h5"; }, {"there is no folder"});
  EXPECT_EQ(folder.names(), (Texts{"none", "x.gz", "x.txt"}));
}

TEST(Import, AFullDiskLeavesNeitherStore) {
  const TempFolder folder;
  for (uint64_t d = 0; d < 60; ++d)
    write_file(folder / ("texts/" + std::to_string(d)), prose(d, 10'000));
  const std::vector<std::string> before = folder.names();
  {
    // The held-out store would fit, the training store does not.
    const FileSizeLimit limit(512 << 10);
    expect_error<IoError>([&] { build_store(split_options(folder, {"texts"}, 0.1)); },
                          {folder / "train.h5", "bytes needed"});
  }
  EXPECT_EQ(folder.names(), before);
}

TEST(Import, Inspect) {
  const TempFolder folder;
  write_file(folder / "a", "caf\xc3\xa9 \xff");
  write_file(folder / "b", "xx");
  const BuildSummary summary = build_store(options(folder, {"a", "b"}));
  const nlohmann::json report = inspect_store(folder / "train.h5");
  EXPECT_EQ(report["documents"], 2);
  EXPECT_EQ(report["tokens"], 11);
  EXPECT_EQ(report["vocab_size"], 257);
  EXPECT_EQ(report["distinct_tokens"], 9);  // c a f 0xc3 0xa9 space 0xff x end
  EXPECT_EQ(report["tokenizer"], "byte");
  EXPECT_EQ(report["content_hash"], summary.train.content_hash);
  EXPECT_EQ(report["document_tokens"]["min"], 3);
  EXPECT_EQ(report["document_tokens"]["max"], 8);
  EXPECT_EQ(report["document_tokens"]["mean"], 5.5);
  EXPECT_EQ(report["samples"], (Texts{"caf\u00e9 \ufffd", "xx"}));
  EXPECT_EQ(report["sources"][1]["text_bytes"], 2);
  EXPECT_FALSE(report.dump().empty());
  EXPECT_FALSE(to_json(summary).dump().empty());
  // Sources that are no JSON, or nested without end, come back as text.
  TokenStoreHeader header = byte_header();
  header.sources = std::string(200'000, '[');
  write_store(folder / "deep.h5", header, {{1}});
  EXPECT_EQ(inspect_store(folder / "deep.h5")["sources"], header.sources);
}

TEST(Import, EqualInputsGiveEqualStores) {
  const TempFolder folder;
  write_file(folder / "x.txt", prose(1, 5000));
  build_store(options(folder, {"x.txt"}));
  const std::string first = read_text(folder / "train.h5");
  build_store(options(folder, {"x.txt"}));
  EXPECT_EQ(read_text(folder / "train.h5"), first);
}

}  // namespace
}  // namespace sluice::test
