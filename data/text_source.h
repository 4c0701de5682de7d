// Documents out of text files, jsonl files and folders of them, one at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/byte_source.h"

namespace sluice {

// Named .jsonl, .jsonl.gz or .jsonl.zst; any other file is text.
struct SourceFile {
  std::string path;
  bool jsonl = false;
  Compression compression = Compression::none;
};

// Expands folders: their regular files, recursively, sorted by path, without hidden names and
// compressed files other than jsonl; only names with one of `suffixes`, if there are any. Throws
// IoError for an input that does not exist, UsageError for a compressed file that is not jsonl or a
// folder without files.
std::vector<SourceFile> list_sources(const std::vector<std::string>& inputs,
                                     const std::vector<std::string>& suffixes);

struct DocumentOptions {
  std::string jsonl_field = "text";
  int64_t piece_bytes = 0;  // longer documents come in pieces of at most this; 0: whole
};

// Calls visit(text) for every document of a file, in order, also for empty ones. Throws DataError
// naming file:line for a bad line of jsonl and the file where compressed data is damaged,
// UsageError for a document above 1 GiB.
void visit_documents(const SourceFile& file, const DocumentOptions& options,
                     const std::function<void(std::string_view)>& visit);

// Length of the first piece of a text that is longer than `limit`: after the last line's end in the
// piece's last quarter, else before a UTF-8 sequence that would be cut, else `limit`.
size_t cut_length(std::string_view text, size_t limit);

}  // namespace sluice
