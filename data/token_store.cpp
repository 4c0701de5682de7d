#include "data/token_store.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "kernels/core/error.h"

namespace sluice {

namespace {

// Tokens of a chunk in the file, which is also what is read, checked and kept as one.
constexpr int64_t kBlockTokens = int64_t{1} << 16;

bool fits_u16(int64_t vocab_size) { return vocab_size <= int64_t{1} << 16; }

}  // namespace

// ---- writing ----

TokenStoreWriter::TokenStoreWriter(TokenStoreHeader header) : header_(std::move(header)) {
  SLUICE_CHECK(header_.vocab_size > 0 && header_.vocab_size <= kMaxVocab, "vocabulary of ",
               header_.vocab_size);
  SLUICE_CHECK(header_.end_of_document >= 0 && header_.end_of_document < header_.vocab_size,
               "end of document ", header_.end_of_document, " of ", header_.vocab_size);
  file_.create_growing("tokens", fits_u16(header_.vocab_size) ? StoredType::u16 : StoredType::u32,
                       kBlockTokens);
}

void TokenStoreWriter::add_document(std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= header_.vocab_size || id == header_.end_of_document) {
      throw DataError(
          fmt::format("document {}: token {} is {}", num_documents(), id,
                      id == header_.end_of_document
                          ? "the end mark, which only ends documents"
                          : fmt::format("outside the vocabulary of {}", header_.vocab_size)));
    }
  }
  pending_.insert(pending_.end(), ids.begin(), ids.end());
  pending_.push_back(header_.end_of_document);
  offsets_.push_back(offsets_.back() + int64_t(ids.size()) + 1);
  if (int64_t(pending_.size()) >= kBlockTokens) flush(int64_t(pending_.size()) / kBlockTokens);
}

void TokenStoreWriter::flush(int64_t blocks) {
  const size_t count = std::min(pending_.size(), size_t(blocks * kBlockTokens));
  if (fits_u16(header_.vocab_size)) {
    flush_as<uint16_t>(count);
  } else {
    flush_as<uint32_t>(count);
  }
  pending_.erase(pending_.begin(), pending_.begin() + int64_t(count));
}

template <class T>
void TokenStoreWriter::flush_as(size_t count) {
  const std::vector<T> narrow(pending_.begin(), pending_.begin() + int64_t(count));
  hash_.update(narrow.data(), count * sizeof(T));
  file_.append<T>("tokens", narrow);
}

StagedFile TokenStoreWriter::stage(const std::string& path) {
  if (num_documents() == 0)
    throw UsageError(fmt::format("{}: no documents to store; give inputs that hold text", path));
  if (!pending_.empty()) flush(1);
  hash_.update(offsets_.data(), offsets_.size() * sizeof(int64_t));
  header_.content_hash = hash_.hex();
  file_.write("doc_offsets", {int64_t(offsets_.size())}, offsets_.data());
  file_.set_attribute("format_version", kTokenStoreVersion);
  file_.set_attribute("vocab_size", header_.vocab_size);
  file_.set_attribute("tokenizer", header_.tokenizer);
  file_.set_attribute("tokenizer_hash", header_.tokenizer_hash);
  file_.set_attribute("end_of_document", int64_t{header_.end_of_document});
  file_.set_attribute("sources", header_.sources);
  file_.set_attribute("content_hash", header_.content_hash);
  return StagedFile(path, file_.finish());
}

// ---- reading ----

TokenStore::TokenStore(const std::string& path, int64_t cache_bytes)
    : path_(path),
      max_blocks_(
          size_t(std::max<int64_t>(1, cache_bytes / (kBlockTokens * int64_t(sizeof(int32_t)))))) {
  const Hdf5Reader file(path);
  read_header(file);
  const StoredType type = fits_u16(header_.vocab_size) ? StoredType::u16 : StoredType::u32;
  tokens_ = std::make_unique<Hdf5Dataset>(file.dataset("tokens"));
  const Hdf5Dataset offsets = file.dataset("doc_offsets");
  if (tokens_->info().type != type || tokens_->info().dims.size() != 1 || !tokens_->checksummed() ||
      tokens_->chunk() != kBlockTokens) {
    throw DataError(fmt::format("{}: /tokens: expected one dim of {} in checksummed chunks of {}",
                                path, name_of(type), kBlockTokens));
  }
  // A document has at least its end mark, which bounds what is allocated.
  if (offsets.info().type != StoredType::i64 || offsets.info().dims.size() != 1 ||
      offsets.info().numel() < 2 || offsets.info().numel() - 1 > tokens_->info().numel()) {
    throw DataError(fmt::format("{}: /doc_offsets: expected one dim of 2 to {} i64, got {}", path,
                                tokens_->info().numel() + 1, offsets.info().numel()));
  }
  offsets_ = offsets.read<int64_t>();
  check_offsets();
}

void TokenStore::read_header(const Hdf5Reader& file) {
  const int64_t version = file.int_attribute("format_version");
  if (version != kTokenStoreVersion) {
    throw DataError(fmt::format(
        "{}: token store of format version {}, this sluice reads {}; build the store again", path_,
        version, kTokenStoreVersion));
  }
  header_.vocab_size = file.int_attribute("vocab_size");
  const int64_t end = file.int_attribute("end_of_document");
  if (header_.vocab_size < 1 || header_.vocab_size > kMaxVocab || end < 0 ||
      end >= header_.vocab_size) {
    throw DataError(fmt::format("{}: vocabulary of {} with end of document {}", path_,
                                header_.vocab_size, end));
  }
  header_.end_of_document = int32_t(end);
  header_.tokenizer = file.string_attribute("tokenizer");
  header_.tokenizer_hash = file.string_attribute("tokenizer_hash");
  header_.sources = file.string_attribute("sources");
  header_.content_hash = file.string_attribute("content_hash");
}

void TokenStore::check_offsets() const {
  const int64_t num_stored = tokens_->info().numel();
  if (offsets_.front() != 0 || offsets_.back() != num_stored) {
    throw DataError(fmt::format("{}: /doc_offsets: expected 0 first and {} last, got {} and {}",
                                path_, num_stored, offsets_.front(), offsets_.back()));
  }
  for (size_t i = 1; i < offsets_.size(); ++i) {
    if (offsets_[i] > offsets_[i - 1]) continue;
    throw DataError(fmt::format("{}: /doc_offsets: element {} is {}, not above {} before it", path_,
                                i, offsets_[i], offsets_[i - 1]));
  }
}

void TokenStore::check_block(int64_t begin, const Block& block) const {
  // The end of the document that `begin` lies in, then of the following ones.
  auto end = std::upper_bound(offsets_.begin(), offsets_.end(), begin);
  for (size_t i = 0; i < block.size(); ++i) {
    const int64_t at = begin + int64_t(i);
    if (block[i] < 0 || block[i] >= header_.vocab_size) {
      throw DataError(fmt::format("{}: /tokens: element {} is {}, not below the vocabulary of {}",
                                  path_, at, uint32_t(block[i]), header_.vocab_size));
    }
    const bool last = at + 1 == *end;
    if (last) ++end;
    if (last == (block[i] == header_.end_of_document)) continue;
    throw DataError(fmt::format(
        "{}: /tokens: element {} is {}, {} the end mark {}", path_, at, block[i],
        last ? "ends a document but is not" : "is inside one but is", header_.end_of_document));
  }
}

template <class T>
TokenStore::Block TokenStore::load_as(int64_t begin, int64_t count) const {
  std::vector<T> stored(static_cast<size_t>(count));
  tokens_->read_range(begin, count, stored.data());
  return Block(stored.begin(), stored.end());
}

TokenStore::Block TokenStore::load(int64_t index) const {
  const int64_t begin = index * kBlockTokens;
  const int64_t count = std::min(kBlockTokens, num_tokens() - begin);
  Block block = tokens_->info().type == StoredType::u16 ? load_as<uint16_t>(begin, count)
                                                        : load_as<uint32_t>(begin, count);
  check_block(begin, block);
  return block;
}

const TokenStore::Block& TokenStore::block(int64_t index) {
  const auto found = index_.find(index);
  if (found != index_.end()) {
    blocks_.splice(blocks_.begin(), blocks_, found->second);
    return blocks_.front().second;
  }
  Block loaded = load(index);
  if (blocks_.size() >= max_blocks_) {
    index_.erase(blocks_.back().first);
    blocks_.pop_back();
  }
  blocks_.emplace_front(index, std::move(loaded));
  index_[index] = blocks_.begin();
  return blocks_.front().second;
}

void TokenStore::read(int64_t begin, int64_t count, int32_t* out) {
  SLUICE_CHECK(begin >= 0 && count >= 0 && begin <= num_tokens() - count, path_, ": tokens [",
               begin, ", ", begin + count, ") of ", num_tokens());
  while (count > 0) {
    const Block& from = block(begin / kBlockTokens);
    const int64_t skip = begin % kBlockTokens;
    const int64_t taken = std::min(count, int64_t(from.size()) - skip);
    std::copy_n(from.begin() + skip, taken, out);
    out += taken;
    begin += taken;
    count -= taken;
  }
}

void TokenStore::verify() {
  Xxh3Stream hash;
  for (int64_t begin = 0; begin < num_tokens(); begin += kBlockTokens) {
    const Block tokens = load(begin / kBlockTokens);
    if (tokens_->info().type == StoredType::u16) {
      const std::vector<uint16_t> narrow(tokens.begin(), tokens.end());
      hash.update(narrow.data(), narrow.size() * sizeof(uint16_t));
    } else {
      hash.update(tokens.data(), tokens.size() * sizeof(int32_t));
    }
  }
  hash.update(offsets_.data(), offsets_.size() * sizeof(int64_t));
  if (hash.hex() != header_.content_hash) {
    throw DataError(fmt::format("{}: content hash: expected {}, got {}", path_,
                                header_.content_hash, hash.hex()));
  }
}

}  // namespace sluice
