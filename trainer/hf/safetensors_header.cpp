// The header of a safetensors file, read by events: what is not expected is refused where it
// stands, so nothing deeper or larger than a header is ever held.
#include <algorithm>
#include <optional>

#include "kernels/core/error.h"
#include "trainer/hf/safetensors.h"
#include "trainer/json_file.h"

namespace sluice {

namespace {

constexpr const char* kMetadata = "__metadata__";
constexpr SafetensorsType kTypes[] = {
    SafetensorsType::F64, SafetensorsType::F32, SafetensorsType::F16, SafetensorsType::BF16,
    SafetensorsType::I64, SafetensorsType::I32, SafetensorsType::I16, SafetensorsType::I8,
    SafetensorsType::U8,  SafetensorsType::BOOL};

// {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {...}}
class HeaderEvents : public nlohmann::json_sax<Json> {
 public:
  SafetensorsHeader header;
  std::string error;
  size_t error_position = std::string::npos;  // npos: the message names the tensor

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("true or false"); }
  bool number_integer(number_integer_t) override { return unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    return unexpected("a number that is no integer");
  }
  bool binary(binary_t&) override { return unexpected("a binary value"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) return unexpected("a number");
    if (value > uint64_t(std::numeric_limits<int64_t>::max())) return fail("a number above 2^63");
    if (key_ == "shape") {
      if (shape_.size() == kMaxSafetensorsRank) return fail("more than 16 dims");
      shape_.push_back(int64_t(value));
    } else {
      if (offsets_.size() == 2) return fail("more than two data_offsets");
      offsets_.push_back(value);
    }
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ != 2 || in_array_) return unexpected("a string");
    if (name_ == kMetadata) return add_metadata(std::move(value));
    if (key_ != "dtype") return unexpected("a string");
    for (const SafetensorsType type : kTypes) {
      if (value == name_of(type)) type_ = type;
    }
    if (!type_) {
      return fail(concat("dtype ", printable(value),
                         " is not read; F64, F32, F16, BF16, I64, I32, I16, I8, U8 and BOOL are"));
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (in_array_ || depth_ == 2) return unexpected("an object");
    ++depth_;
    return true;
  }
  bool end_object() override { return --depth_ == 0 || name_ == kMetadata || finish_tensor(); }
  bool start_array(std::size_t) override {
    if (depth_ != 2 || in_array_ || (key_ != "shape" && key_ != "data_offsets")) {
      return unexpected("a list");
    }
    in_array_ = true;
    return true;
  }
  bool end_array() override {
    in_array_ = false;
    return true;
  }
  bool key(string_t& key) override {
    if (depth_ == 1) {
      name_ = std::move(key);
      if (name_ == kMetadata && had_metadata_) return fail("stands twice");
      had_metadata_ = had_metadata_ || name_ == kMetadata;
      had_dtype_ = had_shape_ = had_offsets_ = false;
      type_.reset();
      shape_.clear();
      offsets_.clear();
      return true;
    }
    key_ = std::move(key);
    return name_ == kMetadata || count_key();
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    error = "not JSON";
    error_position = position;
    return false;
  }

 private:
  bool fail(const std::string& what) {
    error =
        concat(depth_ == 0 ? std::string("the header") : "tensor " + printable(name_), ": ", what);
    return false;
  }
  bool unexpected(const char* what) {
    return fail(concat(what, " where {dtype, shape, data_offsets} has none"));
  }
  bool count_key() {
    bool* had = key_ == "dtype"          ? &had_dtype_
                : key_ == "shape"        ? &had_shape_
                : key_ == "data_offsets" ? &had_offsets_
                                         : nullptr;
    if (had == nullptr) return fail(concat("the unknown key ", printable(key_)));
    if (*had) return fail(concat("the key ", printable(key_), " twice"));
    return *had = true;
  }
  bool add_metadata(std::string value) {
    if (!header.metadata.emplace(key_, std::move(value)).second) {
      return fail(concat("the key ", printable(key_), " twice"));
    }
    return true;
  }
  bool finish_tensor() {
    if (!type_ || !had_shape_ || offsets_.size() != 2) {
      return fail("needs dtype, shape and two data_offsets");
    }
    header.tensors.push_back(
        {.name = name_, .type = *type_, .shape = shape_, .begin = offsets_[0], .end = offsets_[1]});
    return true;
  }

  int depth_ = 0;
  bool in_array_ = false;
  bool had_metadata_ = false, had_dtype_ = false, had_shape_ = false, had_offsets_ = false;
  std::string name_, key_;
  std::optional<SafetensorsType> type_;
  std::vector<int64_t> shape_;
  std::vector<uint64_t> offsets_;
};

std::string describe(const SafetensorsEntry& entry) {
  std::string shape;
  for (const int64_t dim : entry.shape) shape += concat(shape.empty() ? "" : ", ", dim);
  return concat("tensor ", printable(entry.name), " (", name_of(entry.type), " [", shape,
                "], bytes [", entry.begin, ", ", entry.end, "))");
}

void check_size(const SafetensorsEntry& entry, const std::string& where) {
  int64_t bytes = size_of(entry.type);
  bool overflow = false;
  for (const int64_t dim : entry.shape) overflow |= __builtin_mul_overflow(bytes, dim, &bytes);
  if (overflow) throw DataError(concat(where, ": ", describe(entry), ": the size overflows"));
  if (entry.end < entry.begin || entry.end - entry.begin != uint64_t(bytes)) {
    throw DataError(concat(where, ": ", describe(entry), ": the shape needs ", bytes, " bytes"));
  }
}

void check_tiling(const SafetensorsHeader& header, uint64_t data_bytes, const std::string& where) {
  std::vector<const SafetensorsEntry*> order;
  for (const SafetensorsEntry& entry : header.tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  uint64_t end = 0;
  for (const SafetensorsEntry* entry : order) {
    if (entry->begin != end) {
      throw DataError(concat(where, ": ", describe(*entry), ": ",
                             entry->begin > end ? "a hole" : "an overlap",
                             " before it; the tensor in front ends at ", end));
    }
    end = entry->end;
  }
  if (end != data_bytes) {
    throw DataError(concat(where, ": the tensors end at byte ", end, " of the data, which has ",
                           data_bytes, end > data_bytes ? ": truncated" : ": bytes left over"));
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes,
                                           const std::string& where) {
  constexpr size_t kLengthBytes = 8;  // in front of the JSON: positions count from the file's start
  if (json.empty() || json.front() != '{') {
    throw DataError(concat(where, ": the header must begin with '{' at byte ", kLengthBytes));
  }
  const size_t last = json.find_last_not_of(' ');
  if (json[last] != '}') {
    throw DataError(concat(where, ": only spaces may follow the header's '}', got another byte at ",
                           kLengthBytes + last));
  }
  HeaderEvents events;
  if (!Json::sax_parse(json.begin(), json.end(), &events)) {
    throw DataError(events.error_position == std::string::npos
                        ? concat(where, ": ", events.error)
                        : concat(where, ": the header is not JSON at byte ",
                                 kLengthBytes + events.error_position));
  }
  SafetensorsHeader header = std::move(events.header);
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  for (size_t i = 0; i < header.tensors.size(); ++i) {
    if (i > 0 && header.tensors[i].name == header.tensors[i - 1].name) {
      throw DataError(concat(where, ": the tensor ", printable(header.tensors[i].name), " twice"));
    }
    check_size(header.tensors[i], where);
  }
  check_tiling(header, data_bytes, where);
  return header;
}

}  // namespace sluice
