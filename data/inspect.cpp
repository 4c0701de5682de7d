#include <algorithm>
#include <vector>

#include "data/import.h"
#include "data/token_store.h"
#include "data/tokenizer.h"

namespace sluice {

namespace {

nlohmann::json to_json(const StoreSummary& summary) {
  return {{"path", printable(summary.path)},  {"documents", summary.documents},
          {"tokens", summary.tokens},         {"text_bytes", summary.text_bytes},
          {"file_bytes", summary.file_bytes}, {"content_hash", summary.content_hash}};
}

nlohmann::json describe_lengths(std::span<const int64_t> offsets) {
  std::vector<int64_t> lengths;
  for (size_t d = 1; d < offsets.size(); ++d) lengths.push_back(offsets[d] - offsets[d - 1]);
  std::sort(lengths.begin(), lengths.end());
  const auto percentile = [&](size_t percent) {
    return lengths[(lengths.size() - 1) * percent / 100];
  };
  return {{"min", lengths.front()},
          {"p10", percentile(10)},
          {"p50", percentile(50)},
          {"p90", percentile(90)},
          {"p99", percentile(99)},
          {"max", lengths.back()},
          {"mean", double(offsets.back()) / double(lengths.size())}};
}

int64_t count_distinct(TokenStore& store) {
  std::vector<bool> seen(size_t(store.header().vocab_size));
  std::vector<int32_t> tokens(size_t{1} << 16);
  for (int64_t begin = 0; begin < store.num_tokens(); begin += int64_t(tokens.size())) {
    const int64_t count = std::min(int64_t(tokens.size()), store.num_tokens() - begin);
    store.read(begin, count, tokens.data());
    for (int64_t i = 0; i < count; ++i) seen[size_t(tokens[size_t(i)])] = true;
  }
  return std::count(seen.begin(), seen.end(), true);
}

// The beginnings of the first documents; ids alone if the tokenizer is not known here.
nlohmann::json samples(TokenStore& store, int64_t num_samples, int64_t sample_tokens) {
  nlohmann::json found = nlohmann::json::array();
  const bool known = store.header().tokenizer == "byte";
  for (int64_t d = 0; d < std::min(num_samples, store.num_documents()); ++d) {
    const int64_t begin = store.doc_offsets()[size_t(d)];
    const int64_t length = store.doc_offsets()[size_t(d) + 1] - begin;
    std::vector<int32_t> ids(size_t(std::min(length, sample_tokens)));
    store.read(begin, int64_t(ids.size()), ids.data());
    if (known) {
      found.push_back(printable(ByteTokenizer().decode(ids)));
    } else {
      found.push_back(ids);
    }
  }
  return found;
}

// Whoever made the store wrote this: deep nesting would overflow the stack of later copies.
nlohmann::json parse_sources(const std::string& text) {
  int depth = 0;
  const auto shallow = [&](int level, nlohmann::json::parse_event_t, nlohmann::json&) {
    depth = std::max(depth, level);
    return level < 8;
  };
  const nlohmann::json sources = nlohmann::json::parse(text, shallow, false);
  if (sources.is_discarded() || depth >= 8) return printable(text);
  return sources;
}

}  // namespace

std::string printable(const std::string& text) {
  using Json = nlohmann::json;
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace))
      .get<std::string>();
}

nlohmann::json to_json(const BuildSummary& summary) {
  nlohmann::json json = {{"train", to_json(summary.train)},
                         {"files", summary.files},
                         {"empty_documents", summary.empty_documents},
                         {"split_documents", summary.split_documents}};
  if (!summary.valid.path.empty()) json["valid"] = to_json(summary.valid);
  return json;
}

nlohmann::json inspect_store(const std::string& path, int64_t num_samples, int64_t sample_tokens) {
  TokenStore store(path, 0);
  store.verify();
  const TokenStoreHeader& header = store.header();
  return {{"path", printable(path)},
          {"format_version", kTokenStoreVersion},
          {"vocab_size", header.vocab_size},
          {"tokenizer", printable(header.tokenizer)},
          {"tokenizer_hash", printable(header.tokenizer_hash)},
          {"end_of_document", header.end_of_document},
          {"content_hash", header.content_hash},
          {"sources", parse_sources(header.sources)},
          {"documents", store.num_documents()},
          {"tokens", store.num_tokens()},
          {"distinct_tokens", count_distinct(store)},
          {"document_tokens", describe_lengths(store.doc_offsets())},
          {"samples", samples(store, num_samples, sample_tokens)}};
}

}  // namespace sluice
