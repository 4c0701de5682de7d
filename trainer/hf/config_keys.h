// The keys of a config.json while it is mapped: each default that is taken is noted, and what
// cannot be represented is refused with the key and the reason.
#pragma once

#include <string>
#include <vector>

#include "trainer/json_file.h"

namespace sluice {

class ConfigKeys {
 public:
  // Upper bounds of sizes from a file, so that no product of three of them overflows.
  static constexpr int64_t kMaxSize = int64_t{1} << 22;
  static constexpr int64_t kMaxInner = int64_t{1} << 26;  // products: heads * head_dim, ...
  static constexpr int64_t kMaxLayers = int64_t{1} << 14;
  static constexpr int64_t kMaxExperts = int64_t{1} << 14;

  explicit ConfigKeys(const JsonObject& object) : object_(object) {}

  const JsonObject& object() const { return object_; }
  bool has(const std::string& key) const { return object_.has(key); }
  // The key under which a value stands: `alias` if the file has it, else `key`. DataError if both
  // are there and differ.
  std::string either(const std::string& key, const std::string& alias) const;

  // A size in [1, max]; the second form takes the default where the key is absent, and notes it.
  int64_t size(const std::string& key, int64_t max = kMaxSize) const;
  int64_t size_or(const std::string& key, int64_t fallback, int64_t max = kMaxSize);
  int64_t index_or(const std::string& key, int64_t fallback);  // from 0
  double number_or(const std::string& key, double fallback);   // finite, >= 0
  bool flag_or(const std::string& key, bool fallback);
  std::string word_or(const std::string& key, const std::string& fallback);

  // a * b, DataError naming `what` above kMaxInner.
  int64_t product(const std::string& what, int64_t a, int64_t b) const;

  // Refuse what sluice does not compute.
  [[noreturn]] void refuse(const std::string& key, const std::string& reason) const;
  void expect_absent(const std::string& key, const std::string& reason) const;  // or null
  void expect_word(const std::string& key, const std::string& word, const std::string& fallback);
  void expect_flag(const std::string& key, bool value, bool fallback, const std::string& reason);

  void note(const std::string& text) { notes_.push_back(text); }
  // The notes, with the keys that were not used as the last one.
  std::vector<std::string> take_notes();

 private:
  template <class T>
  T absent(const std::string& key, T fallback);

  const JsonObject& object_;
  std::vector<std::string> notes_;
};

}  // namespace sluice
