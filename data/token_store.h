// A corpus as token ids: one HDF5 file.
//
//   /tokens       u16 or u32 (by vocabulary), all documents back to back, each with its end mark
//   /doc_offsets  i64, first 0, last the number of tokens, strictly ascending
//   attributes    format_version, vocab_size, tokenizer, tokenizer_hash, end_of_document,
//                 sources (JSON), content_hash (XXH3-128 of the tokens, then the offsets, as
//                 stored)
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "data/files.h"
#include "data/hdf5_file.h"
#include "data/tokenizer.h"

namespace sluice {

inline constexpr int64_t kTokenStoreVersion = 1;
inline constexpr int64_t kMaxVocab = int64_t{1} << 24;

struct TokenStoreHeader {
  int64_t vocab_size = 0;
  std::string tokenizer;
  std::string tokenizer_hash;
  int32_t end_of_document = 0;
  std::string sources = "[]";
  std::string content_hash;  // filled in by the writer
};

// Documents are appended; nothing exists under the final name before finish().
class TokenStoreWriter {
 public:
  explicit TokenStoreWriter(TokenStoreHeader header);

  // One document without its end mark, which is added. Throws DataError for an id outside the
  // vocabulary and for the end mark inside the document.
  void add_document(std::span<const int32_t> ids);
  int64_t num_documents() const { return int64_t(offsets_.size()) - 1; }
  int64_t num_tokens() const { return offsets_.back(); }

  void set_sources(const std::string& json) { header_.sources = json; }
  // Throws UsageError if there is no document, IoError if the file cannot be written.
  void finish(const std::string& path) { stage(path).commit(); }
  // The same up to the rename, for files that are to appear together.
  StagedFile stage(const std::string& path);
  // With the content hash, once staged or finished.
  const TokenStoreHeader& header() const { return header_; }

 private:
  void flush(int64_t blocks);
  template <class T>
  void flush_as(size_t count);

  TokenStoreHeader header_;
  Hdf5Writer file_;
  Xxh3Stream hash_;
  std::vector<int32_t> pending_;  // tokens not yet in file_
  std::vector<int64_t> offsets_{0};
};

// Reads ranges of tokens block by block. A block is checked when it is first read: its checksum,
// every id below the vocabulary, every document's end mark at its place and nowhere else; DataError
// names file and offset. The header and all offsets are checked on construction.
//
// One thread at a time. Blocks stay in memory up to `cache_bytes`, the least recently used go
// first.
class TokenStore {
 public:
  static constexpr int64_t kDefaultCache = int64_t{512} << 20;

  explicit TokenStore(const std::string& path, int64_t cache_bytes = kDefaultCache);

  const std::string& path() const { return path_; }
  const TokenStoreHeader& header() const { return header_; }
  int64_t num_tokens() const { return offsets_.back(); }
  int64_t num_documents() const { return int64_t(offsets_.size()) - 1; }
  // num_documents() + 1 of them.
  std::span<const int64_t> doc_offsets() const { return offsets_; }

  // Tokens [begin, begin + count).
  void read(int64_t begin, int64_t count, int32_t* out);
  // Reads everything once and compares the content hash. Throws DataError.
  void verify();

 private:
  using Block = std::vector<int32_t>;
  void read_header(const Hdf5Reader& file);
  void check_offsets() const;
  void check_block(int64_t begin, const Block& block) const;
  Block load(int64_t index) const;
  const Block& block(int64_t index);
  template <class T>
  Block load_as(int64_t begin, int64_t count) const;

  std::string path_;
  TokenStoreHeader header_;
  std::unique_ptr<Hdf5Dataset> tokens_;
  std::vector<int64_t> offsets_;
  size_t max_blocks_ = 1;
  // Most recently used first.
  std::list<std::pair<int64_t, Block>> blocks_;
  std::unordered_map<int64_t, std::list<std::pair<int64_t, Block>>::iterator> index_;
};

}  // namespace sluice
