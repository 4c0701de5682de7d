#include "trainer/json_file.h"

#include <cmath>
#include <utility>

#include "data/files.h"
#include "kernels/core/error.h"

namespace sluice {

namespace {

constexpr std::string_view kNonFinite[] = {"-Infinity", "Infinity", "NaN"};
constexpr const char* kFloatKey = "__float__";

// `text` with bare Infinity, -Infinity and NaN as {"__float__": "..."}, and what maps a byte of the
// result to the byte it came from.
struct Rewritten {
  struct Shift {
    size_t at = 0;     // in the result
    size_t added = 0;  // bytes added so far
  };
  std::string text;
  std::vector<Shift> shifts;

  size_t original(size_t position) const {
    size_t added = 0;
    for (const Shift& shift : shifts) {
      if (shift.at <= position) added = shift.added;
    }
    return position - added;
  }
};

Rewritten rewrite_non_finite(std::string_view text) {
  Rewritten result;
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    std::string_view literal;
    if (!in_string) {
      for (const std::string_view candidate : kNonFinite) {
        if (text.substr(i, candidate.size()) == candidate) literal = candidate;
      }
    }
    if (!literal.empty()) {
      result.text += concat("{\"", kFloatKey, "\":\"", literal, "\"}");
      i += literal.size();
      result.shifts.push_back({.at = result.text.size(), .added = result.text.size() - i});
      continue;
    }
    if (text[i] == '"') in_string = !in_string;
    if (in_string && text[i] == '\\' && i + 1 < text.size()) result.text += text[i++];
    result.text += text[i++];
  }
  return result;
}

// Builds the value, refusing what the limits and the rules forbid. The parser itself is iterative.
class Builder : public nlohmann::json_sax<Json> {
 public:
  Builder(std::string where, const JsonLimits& limits)
      : where_(std::move(where)), limits_(limits) {}

  Json take() { return std::move(root_); }
  const std::string& error() const { return error_; }
  size_t error_position() const { return error_position_; }  // npos: the message names the place

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return fail("binary values do not exist in JSON"); }

  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }
  bool end_object() override {
    if (limits_.non_finite) replace_float(*stack_.back());
    return close();
  }
  bool key(string_t& name) override {
    if (stack_.back()->contains(name)) return fail(concat("the key ", printable(name), " twice"));
    key_ = std::move(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& exception) override {
    // "[json.exception...] parse error at line 1, column 2: what is wrong"; the place is ours.
    std::string message = exception.what();
    const size_t column = message.find("column ");
    const size_t colon = message.find(": ", column == std::string::npos ? 0 : column);
    if (colon != std::string::npos) message = message.substr(colon + 2);
    message = printable(message.substr(0, message.find("; last read")));
    fail(message.substr(1, message.size() - 2));
    error_position_ = position;
    return false;
  }

 private:
  bool fail(const std::string& message) {
    error_ = message;
    error_position_ = std::string::npos;
    return false;
  }

  Json* place(Json&& value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }
  bool add(Json&& value) {
    if (++values_ > limits_.max_values) {
      return fail(concat("more than ", limits_.max_values, " values"));
    }
    place(std::move(value));
    return true;
  }
  bool open(Json&& value) {
    if (int64_t(stack_.size()) >= limits_.max_depth) {
      return fail(concat("nested more than ", limits_.max_depth, " deep"));
    }
    if (++values_ > limits_.max_values) {
      return fail(concat("more than ", limits_.max_values, " values"));
    }
    stack_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }

  static void replace_float(Json& object) {
    if (object.size() != 1 || !object.contains(kFloatKey)) return;
    const Json& text = object[kFloatKey];
    if (text == "Infinity") {
      object = std::numeric_limits<double>::infinity();
    } else if (text == "-Infinity") {
      object = -std::numeric_limits<double>::infinity();
    } else if (text == "NaN") {
      object = std::numeric_limits<double>::quiet_NaN();
    }
  }

  std::string where_;
  JsonLimits limits_;
  Json root_;
  std::vector<Json*> stack_;  // the containers that are open
  std::string key_;
  int64_t values_ = 0;
  std::string error_;
  size_t error_position_ = std::string::npos;
};

std::string describe(const Json& value) {
  if (value.is_string())
    return concat("the string ", printable(value.get_ref<const std::string&>()));
  if (value.is_boolean()) return value.get<bool>() ? "true" : "false";
  if (value.is_null()) return "null";
  if (value.is_array()) return "a list";
  if (value.is_object()) return "an object";
  return printable(value.dump());
}

[[noreturn]] void fail_type(const std::string& what, const char* expected, const Json& value) {
  throw DataError(concat(what, " must be ", expected, ", got ", describe(value)));
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits) {
  if (int64_t(text.size()) > limits.max_bytes) {
    throw DataError(concat(where, ": ", text.size(), " bytes of JSON, at most ", limits.max_bytes,
                           " are read"));
  }
  Rewritten rewritten;
  if (limits.non_finite) {
    rewritten = rewrite_non_finite(text);
    text = rewritten.text;
  }
  Builder builder(where, limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    const size_t position = builder.error_position();
    throw DataError(position == std::string::npos
                        ? concat(where, ": ", builder.error())
                        : concat(where, ": not JSON at byte ", rewritten.original(position), ": ",
                                 builder.error()));
  }
  return builder.take();
}

Json read_json_file(const std::string& path, const JsonLimits& limits) {
  return parse_json(read_whole_file(path, limits.max_bytes), path, limits);
}

std::string printable(std::string_view text) {
  constexpr size_t kMax = 80;
  std::string result = "'";
  for (const char c : text.substr(0, kMax)) result += c >= 0x20 && c < 0x7f ? c : '?';
  return result + (text.size() > kMax ? "...'" : "'");
}

int64_t json_integer(const Json& value, const std::string& what, int64_t min, int64_t max) {
  if (!value.is_number_integer()) fail_type(what, "an integer", value);
  const bool too_large = value.is_number_unsigned() &&
                         value.get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max());
  if (too_large || value.get<int64_t>() < min || value.get<int64_t>() > max) {
    throw DataError(concat(what, " must be in [", min, ", ", max, "], got ", value.dump()));
  }
  return value.get<int64_t>();
}

double json_number(const Json& value, const std::string& what) {
  if (!value.is_number()) fail_type(what, "a number", value);
  const double number = value.get<double>();
  constexpr double kExact = 9007199254740992.0;  // 2^53
  if (value.is_number_integer() && std::fabs(number) >= kExact) {
    throw DataError(concat(what, " is ", value.dump(), ", which no double holds"));
  }
  return number;
}

bool json_boolean(const Json& value, const std::string& what) {
  if (!value.is_boolean()) fail_type(what, "true or false", value);
  return value.get<bool>();
}

const std::string& json_string(const Json& value, const std::string& what) {
  if (!value.is_string()) fail_type(what, "a string", value);
  return value.get_ref<const std::string&>();
}

const Json& json_array(const Json& value, const std::string& what) {
  if (!value.is_array()) fail_type(what, "a list", value);
  return value;
}

JsonObject::JsonObject(const Json& value, std::string where)
    : value_(value), where_(std::move(where)) {
  if (!value.is_object()) fail_type(concat(where_, ": the whole"), "an object", value);
}

bool JsonObject::has(const std::string& key) const {
  read_.insert(key);
  const auto found = value_.find(key);
  return found != value_.end() && !found->is_null();
}

const Json& JsonObject::at(const std::string& key) const {
  if (!has(key)) throw DataError(concat(name(key), " is missing"));
  return value_[key];
}

int64_t JsonObject::integer(const std::string& key, int64_t min, int64_t max) const {
  return json_integer(at(key), name(key), min, max);
}

double JsonObject::number(const std::string& key) const { return json_number(at(key), name(key)); }

bool JsonObject::boolean(const std::string& key) const { return json_boolean(at(key), name(key)); }

const std::string& JsonObject::string(const std::string& key) const {
  return json_string(at(key), name(key));
}

const Json& JsonObject::array(const std::string& key) const {
  return json_array(at(key), name(key));
}

std::string JsonObject::name(const std::string& key) const {
  return concat(where_, ": ", printable(key));
}

std::vector<std::string> JsonObject::unread() const {
  std::vector<std::string> keys;
  for (const auto& item : value_.items()) {
    if (!item.value().is_null() && !read_.contains(item.key())) keys.push_back(item.key());
  }
  return keys;
}

}  // namespace sluice
