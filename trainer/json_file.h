// JSON that sluice did not write in this run: bounded in bytes, depth and number of values, without
// duplicate keys, read through getters that never narrow. nlohmann::json alone keeps the last of
// two equal keys, turns -1 into 2^64 - 1 and 3.7 into 3, and overflows the stack on deep values.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace sluice {

using Json = nlohmann::json;

struct JsonLimits {
  int64_t max_bytes = int64_t{16} << 20;
  int64_t max_depth = 32;
  int64_t max_values = 1'000'000;
  // Python's literals Infinity, -Infinity and NaN, and {"__float__": "Infinity"} as transformers
  // writes it since 5.3, become numbers.
  bool non_finite = false;
};

// Throw DataError naming `where` (the path) and the byte or the key. read_json_file throws IoError
// for a file that cannot be read.
Json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits = {});
Json read_json_file(const std::string& path, const JsonLimits& limits = {});

// At most 80 characters of a name or value from a file, in quotes, what is not ASCII text as '?'.
std::string printable(std::string_view text);

// The value as an exact integer in [min, max], and so on; DataError names `what` otherwise.
int64_t json_integer(const Json& value, const std::string& what,
                     int64_t min = std::numeric_limits<int64_t>::min(),
                     int64_t max = std::numeric_limits<int64_t>::max());
double json_number(const Json& value, const std::string& what);
bool json_boolean(const Json& value, const std::string& what);
const std::string& json_string(const Json& value, const std::string& what);
const Json& json_array(const Json& value, const std::string& what);

// An object read by key, which remembers the keys that were asked for. Refers to the value it is
// made of. A null counts as an absent key: Python writes None so.
class JsonObject {
 public:
  JsonObject(const Json& value, std::string where);

  bool has(const std::string& key) const;
  // Each throws DataError if the key is absent or holds something else.
  const Json& at(const std::string& key) const;
  int64_t integer(const std::string& key, int64_t min = std::numeric_limits<int64_t>::min(),
                  int64_t max = std::numeric_limits<int64_t>::max()) const;
  double number(const std::string& key) const;
  bool boolean(const std::string& key) const;
  const std::string& string(const std::string& key) const;
  const Json& array(const std::string& key) const;

  std::string name(const std::string& key) const;  // "config.json: 'hidden_size'"
  const std::string& where() const { return where_; }
  // Keys with a value that nobody asked for, sorted.
  std::vector<std::string> unread() const;

 private:
  const Json& value_;
  std::string where_;
  mutable std::set<std::string> read_;
};

}  // namespace sluice
