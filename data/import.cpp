#include "data/import.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "data/files.h"
#include "data/text_source.h"
#include "data/token_store.h"
#include "kernels/core/error.h"

namespace sluice {

namespace {

// A cut corpus should have about this many held-out pieces, of sizes in this range.
constexpr double kValidPieces = 32;
constexpr int64_t kMinPiece = 64;
constexpr int64_t kMaxPiece = 64 << 10;
// The header names files up to this many bytes of names; of the others it gives the number.
constexpr size_t kMaxSourceNames = 128 << 10;

// Documents whose hash lies below `threshold` are held out.
struct Split {
  int64_t piece_bytes = 0;
  uint64_t threshold = 0;
};

// What a pass over the corpus would hold out.
struct SplitCounts {
  int64_t bytes = 0;
  int64_t valid_bytes = 0;
  uint64_t smallest = std::numeric_limits<uint64_t>::max();
  uint64_t largest = 0;
};

class StoreBuilder {
 public:
  explicit StoreBuilder(const BuildOptions& options)
      : options_(options), tokenizer_(make_tokenizer(options.tokenizer)) {
    check_options();
    files_ = list_sources(options.inputs, options.suffixes);
    summary_.files = int64_t(files_.size());
  }

  BuildSummary build() {
    const Split split = choose_split();
    summary_.split_documents = split.piece_bytes;
    TokenStoreWriter train(header());
    TokenStoreWriter valid(header());
    nlohmann::json sources = nlohmann::json::array();
    size_t name_bytes = 0;
    for (const SourceFile& file : files_) {
      const int64_t before = summary_.train.text_bytes + summary_.valid.text_bytes;
      read_file(file, split, train, valid);
      const int64_t bytes = summary_.train.text_bytes + summary_.valid.text_bytes - before;
      name_bytes += file.path.size();
      if (name_bytes <= kMaxSourceNames)
        sources.push_back({{"path", printable(file.path)}, {"text_bytes", bytes}});
    }
    if (sources.size() < files_.size())
      sources.push_back({{"more_files", files_.size() - sources.size()}});
    train.set_sources(sources.dump());
    valid.set_sources(sources.dump());
    finish(train, valid);
    return summary_;
  }

 private:
  void check_options() const {
    if (options_.inputs.empty()) throw UsageError("no inputs; name text files, jsonl or folders");
    if (options_.output.empty()) throw UsageError("no output; name the store to write");
    if (options_.split_documents < 0)
      throw UsageError(
          fmt::format("split_documents must not be negative, got {}", options_.split_documents));
    const bool fraction_is_given = options_.valid_fraction != 0;
    if (fraction_is_given && !(options_.valid_fraction > 0 && options_.valid_fraction < 1))
      throw UsageError(
          fmt::format("valid_fraction must lie between 0 and 1, got {}", options_.valid_fraction));
    if (fraction_is_given != !options_.valid_output.empty())
      throw UsageError("a held-out store needs both a path and a fraction above 0");
    for (const std::string& output : {options_.output, options_.valid_output})
      if (!output.empty()) check_output(output);
    if (options_.output == options_.valid_output)
      throw UsageError(
          fmt::format("{}: training and held-out store are one file", options_.output));
  }

  // Before hours of reading, not after.
  void check_output(const std::string& output) const {
    const std::string folder = folder_of(output);
    if (!std::filesystem::is_directory(folder))
      throw IoError(fmt::format("{}: there is no folder {}; create it first", output, folder));
    if (::access(folder.c_str(), W_OK) != 0)
      throw IoError(fmt::format("{}: no permission to write into {}", output, folder));
    if (std::filesystem::is_directory(output))
      throw UsageError(fmt::format("{}: is a folder; name a file", output));
    for (const std::string& input : options_.inputs) {
      std::error_code ignored;
      if (std::filesystem::equivalent(input, output, ignored))
        throw UsageError(fmt::format("{}: is an input too", output));
    }
  }

  TokenStoreHeader header() const {
    TokenStoreHeader header;
    header.vocab_size = tokenizer_->vocab_size();
    header.tokenizer = tokenizer_->name();
    header.tokenizer_hash = tokenizer_->hash();
    header.end_of_document = tokenizer_->end_of_document();
    return header;
  }

  // The threshold is a share of all hashes. Where whole documents would give less than half or more
  // than twice that share of the text, documents are cut; where even that leaves a part empty, the
  // document of the smallest or of the largest hash goes there.
  Split choose_split() const {
    Split split{.piece_bytes = options_.split_documents, .threshold = 0};
    if (options_.valid_output.empty()) return split;
    const double fraction = options_.valid_fraction;
    split.threshold = uint64_t(std::ldexp(fraction, 64));
    SplitCounts counts = count(split);
    const double share = double(counts.valid_bytes) / double(std::max<int64_t>(counts.bytes, 1));
    if (share >= fraction / 2 && share <= 2 * fraction && counts.valid_bytes < counts.bytes)
      return split;
    const int64_t piece =
        std::clamp(int64_t(double(counts.bytes) * fraction / kValidPieces), kMinPiece, kMaxPiece);
    split.piece_bytes = split.piece_bytes > 0 ? std::min(split.piece_bytes, piece) : piece;
    counts = count(split);
    if (counts.smallest >= counts.largest) {
      throw UsageError(fmt::format(
          "{} bytes of text are too few for a held-out part; give more text", counts.bytes));
    }
    if (counts.valid_bytes == 0) split.threshold = counts.smallest + 1;
    if (counts.valid_bytes == counts.bytes) split.threshold = counts.largest;
    return split;
  }

  DocumentOptions document_options(const Split& split) const {
    return {.jsonl_field = options_.jsonl_field, .piece_bytes = split.piece_bytes};
  }

  SplitCounts count(const Split& split) const {
    SplitCounts counts;
    for (const SourceFile& file : files_) {
      visit_documents(file, document_options(split), [&](std::string_view text) {
        if (text.empty()) return;
        const uint64_t hash = xxh3_64(text);
        counts.bytes += int64_t(text.size());
        counts.valid_bytes += hash < split.threshold ? int64_t(text.size()) : 0;
        counts.smallest = std::min(counts.smallest, hash);
        counts.largest = std::max(counts.largest, hash);
      });
    }
    return counts;
  }

  void read_file(const SourceFile& file, const Split& split, TokenStoreWriter& train,
                 TokenStoreWriter& valid) {
    std::vector<int32_t> ids;
    visit_documents(file, document_options(split), [&](std::string_view text) {
      if (text.empty()) {
        summary_.empty_documents += 1;
        return;
      }
      const bool held_out = xxh3_64(text) < split.threshold;
      ids.clear();
      tokenizer_->encode(text, ids);
      (held_out ? valid : train).add_document(ids);
      (held_out ? summary_.valid : summary_.train).text_bytes += int64_t(text.size());
    });
  }

  // Both files are on the disk before either has its name.
  void finish(TokenStoreWriter& train, TokenStoreWriter& valid) {
    StagedFile staged_train = train.stage(options_.output);
    std::optional<StagedFile> staged_valid;
    if (!options_.valid_output.empty()) staged_valid.emplace(valid.stage(options_.valid_output));
    staged_train.commit();
    if (staged_valid) staged_valid->commit();
    describe(train, options_.output, staged_train.bytes(), summary_.train);
    if (staged_valid) describe(valid, options_.valid_output, staged_valid->bytes(), summary_.valid);
  }

  static void describe(const TokenStoreWriter& writer, const std::string& path, int64_t bytes,
                       StoreSummary& summary) {
    summary.path = path;
    summary.documents = writer.num_documents();
    summary.tokens = writer.num_tokens();
    summary.file_bytes = bytes;
    summary.content_hash = writer.header().content_hash;
  }

  const BuildOptions& options_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<SourceFile> files_;
  BuildSummary summary_;
};

}  // namespace

BuildSummary build_store(const BuildOptions& options) { return StoreBuilder(options).build(); }

}  // namespace sluice
