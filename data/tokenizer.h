// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Appends the ids of `text`, without an end mark.
  virtual void encode(std::string_view text, std::vector<int32_t>& ids) const = 0;
  // The text of `ids`. End marks are left out; an id outside the vocabulary (a model may have more
  // ids than its tokenizer) becomes U+FFFD.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;

  virtual int64_t vocab_size() const = 0;
  virtual int32_t end_of_document() const = 0;
  virtual std::string name() const = 0;
  // Equal iff two tokenizers give equal ids for every text; stores and checkpoints carry it.
  virtual std::string hash() const = 0;
};

// One id a byte, and 256 to end a document: 257 ids.
class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kEndOfDocument = 256;

  void encode(std::string_view text, std::vector<int32_t>& ids) const override;
  std::string decode(std::span<const int32_t> ids) const override;
  int64_t vocab_size() const override { return 257; }
  int32_t end_of_document() const override { return kEndOfDocument; }
  std::string name() const override { return "byte"; }
  std::string hash() const override;
};

// By name: "byte". Throws UsageError naming the known ones.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);

}  // namespace sluice
