// From what people hold to token stores.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sluice {

struct BuildOptions {
  // Files and folders. A folder gives its regular files, recursively, sorted by path; hidden names
  // and compressed files in it are left out, but for jsonl. A name ending in .jsonl, .jsonl.gz or
  // .jsonl.zst is read as jsonl, one document a line; any other file is one document.
  std::vector<std::string> inputs;
  std::vector<std::string> suffixes;  // of the files to take from folders; none: all
  std::string output;                 // the training store
  std::string valid_output;           // the held-out store; empty: none
  double valid_fraction = 0;          // of the documents, chosen by a hash of their text
  std::string tokenizer = "byte";
  std::string jsonl_field = "text";
  // Documents above this many bytes become several, cut at a line's end where one is near. 0:
  // never, except that a corpus of too few documents for a held-out part is cut as finely as that
  // needs.
  int64_t split_documents = 0;
};

struct StoreSummary {
  std::string path;
  int64_t documents = 0;
  int64_t tokens = 0;  // with end marks
  int64_t text_bytes = 0;
  int64_t file_bytes = 0;
  std::string content_hash;
};

struct BuildSummary {
  StoreSummary train;
  StoreSummary valid;  // its path is empty if there is none
  int64_t files = 0;
  int64_t empty_documents = 0;  // left out
  int64_t split_documents = 0;  // the size that was used
};

// The split depends on the documents' text alone: not on names or on the order of files, and equal
// documents fall on the same side. Throws UsageError, DataError (jsonl: file:line) or IoError;
// then no store is left under a final name that was not there before.
BuildSummary build_store(const BuildOptions& options);
nlohmann::json to_json(const BuildSummary& summary);

// Reads and verifies the whole store. Keys: path, format_version, vocab_size, tokenizer,
// tokenizer_hash, end_of_document, content_hash, sources, documents, tokens, distinct_tokens,
// document_tokens.{min, p10, p50, p90, p99, max, mean}, samples (the first documents' beginnings,
// decoded, with U+FFFD for what is not UTF-8).
nlohmann::json inspect_store(const std::string& path, int64_t num_samples = 3,
                             int64_t sample_tokens = 200);

// The text with U+FFFD for what is not UTF-8, as JSON needs it.
std::string printable(const std::string& text);

}  // namespace sluice
