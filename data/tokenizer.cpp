#include "data/tokenizer.h"

#include <fmt/core.h>

#include "data/files.h"
#include "kernels/core/error.h"

namespace sluice {

void ByteTokenizer::encode(std::string_view text, std::vector<int32_t>& ids) const {
  ids.reserve(ids.size() + text.size());
  for (const char c : text) ids.push_back(uint8_t(c));
}

std::string ByteTokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) {
    if (id >= 0 && id < kEndOfDocument) {
      text += char(id);
    } else if (id != kEndOfDocument) {
      text += "\xEF\xBF\xBD";
    }
  }
  return text;
}

std::string ByteTokenizer::hash() const {
  return xxh3_128_hex("byte: 256 bytes as they are, end of document 256");
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
  if (name == "byte") return std::make_unique<ByteTokenizer>();
  throw UsageError(fmt::format("unknown tokenizer \"{}\"; known: byte", name));
}

}  // namespace sluice
