#include "trainer/hf/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>

#include "data/files.h"
#include "kernels/core/arena.h"
#include "kernels/core/dispatch.h"
#include "kernels/core/error.h"
#include "trainer/json_file.h"

namespace sluice {

static_assert(std::endian::native == std::endian::little, "tensors are read as they are stored");

namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr size_t kMaxShards = 10'000;
constexpr JsonLimits kIndexLimits{
    .max_bytes = int64_t{256} << 20, .max_depth = 8, .max_values = 4'000'000};

SafetensorsHeader read_header(const OpenFile& file, uint64_t& data_begin) {
  const auto fail = [&](const std::string& what) { throw DataError(file.path() + ": " + what); };
  uint64_t header_bytes = 0;
  if (file.bytes() < sizeof(header_bytes)) {
    fail(concat("is ", file.bytes(), " bytes long, too short for a safetensors file"));
  }
  file.read(0, sizeof(header_bytes), &header_bytes);
  if (header_bytes > kMaxSafetensorsHeader || header_bytes > file.bytes() - sizeof(header_bytes)) {
    fail(concat("bytes 0 to 7 say that the header has ", header_bytes, " bytes; the file has ",
                file.bytes(), ", and at most ", kMaxSafetensorsHeader, " are read"));
  }
  std::string json(header_bytes, '\0');
  file.read(sizeof(header_bytes), header_bytes, json.data());
  data_begin = sizeof(header_bytes) + header_bytes;
  return parse_safetensors_header(json, file.bytes() - data_begin, file.path());
}

float half_to_float(uint16_t bits) {
  const bool negative = (bits & 0x8000u) != 0;
  const int exponent = (bits >> 10) & 0x1f;
  const int mantissa = bits & 0x3ff;
  float magnitude = 0;
  if (exponent == 0x1f) {
    magnitude = mantissa == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(float(mantissa), -24);
  } else {
    magnitude = std::ldexp(float(mantissa + 0x400), exponent - 25);
  }
  return negative ? -magnitude : magnitude;
}

// One stored element as double, which holds every type's values exactly.
double element(SafetensorsType type, const char* bytes) {
  const auto load = [&]<class T>(T value) {
    std::memcpy(&value, bytes, sizeof(value));
    return value;
  };
  switch (type) {
    case SafetensorsType::F64:
      return load(double{});
    case SafetensorsType::F32:
      return load(float{});
    case SafetensorsType::F16:
      return half_to_float(load(uint16_t{}));
    case SafetensorsType::BF16:
      return std::bit_cast<float>(uint32_t(load(uint16_t{})) << 16);
    default:
      throw Error(ExitCode::bug, "not a floating type");
  }
}

bool is_floating(SafetensorsType type) {
  return type == SafetensorsType::F64 || type == SafetensorsType::F32 ||
         type == SafetensorsType::F16 || type == SafetensorsType::BF16;
}

bool exists(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0;
}

}  // namespace

const char* name_of(SafetensorsType type) {
  switch (type) {
    case SafetensorsType::F64:
      return "F64";
    case SafetensorsType::F32:
      return "F32";
    case SafetensorsType::F16:
      return "F16";
    case SafetensorsType::BF16:
      return "BF16";
    case SafetensorsType::I64:
      return "I64";
    case SafetensorsType::I32:
      return "I32";
    case SafetensorsType::I16:
      return "I16";
    case SafetensorsType::I8:
      return "I8";
    case SafetensorsType::U8:
      return "U8";
    case SafetensorsType::BOOL:
      return "BOOL";
  }
  throw Error(ExitCode::bug, "unknown safetensors type");
}

int64_t size_of(SafetensorsType type) {
  switch (type) {
    case SafetensorsType::F64:
    case SafetensorsType::I64:
      return 8;
    case SafetensorsType::F32:
    case SafetensorsType::I32:
      return 4;
    case SafetensorsType::F16:
    case SafetensorsType::BF16:
    case SafetensorsType::I16:
      return 2;
    case SafetensorsType::I8:
    case SafetensorsType::U8:
    case SafetensorsType::BOOL:
      return 1;
  }
  throw Error(ExitCode::bug, "unknown safetensors type");
}

SafetensorsFile::SafetensorsFile(const std::string& path) : SafetensorsFile(OpenFile(path)) {}

SafetensorsFile::SafetensorsFile(OpenFile file) : file_(std::move(file)) {
  header_ = read_header(file_, data_begin_);
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = std::lower_bound(
      tensors().begin(), tensors().end(), name,
      [](const SafetensorsEntry& entry, std::string_view wanted) { return entry.name < wanted; });
  return found != tensors().end() && found->name == name ? &*found : nullptr;
}

void SafetensorsFile::read_bytes(const SafetensorsEntry& entry, void* out) const {
  file_.read(data_begin_ + entry.begin, entry.end - entry.begin, out);
}

void SafetensorsFile::read_values(const SafetensorsEntry& entry, DType dtype, void* out) const {
  if (!is_floating(entry.type)) {
    throw DataError(concat(path(), ": tensor ", printable(entry.name), " is ", name_of(entry.type),
                           ", expected F64, F32, F16 or BF16"));
  }
  dispatch_float(dtype, [&]<class T>() { read_as(entry, static_cast<T*>(out)); });
}

template <class T>
void SafetensorsFile::read_as(const SafetensorsEntry& entry, T* out) const {
  const bool same = entry.type == (sizeof(T) == 8 ? SafetensorsType::F64 : SafetensorsType::F32);
  if (same) return read_bytes(entry, out);
  constexpr int64_t kPiece = int64_t{1} << 16;  // elements converted at a time
  const int64_t width = size_of(entry.type);
  std::vector<char> bytes(std::min(entry.numel(), kPiece) * width);
  for (int64_t begin = 0; begin < entry.numel(); begin += kPiece) {
    const int64_t count = std::min(kPiece, entry.numel() - begin);
    file_.read(data_begin_ + entry.begin + uint64_t(begin * width), uint64_t(count * width),
               bytes.data());
    for (int64_t i = 0; i < count; ++i) {
      const double value = element(entry.type, bytes.data() + i * width);
      out[begin + i] = T(value);
      if (double(T(value)) != value && !std::isnan(value)) {
        throw DataError(concat(path(), ": tensor ", printable(entry.name), " is ",
                               name_of(entry.type), " and its element ", begin + i,
                               " is no f32 value; convert the file to F32 first"));
      }
    }
  }
}

SafetensorsFolder::SafetensorsFolder(const std::string& folder) : path_(folder) {
  const std::string single = folder + "/" + kSingleFile;
  const std::string index = folder + "/" + kIndexFile;
  if (!exists(single) && exists(index)) {
    open_shards(index);
    return;
  }
  if (!exists(single)) {
    const bool pickle = exists(folder + "/pytorch_model.bin");
    throw IoError(concat(folder, ": holds neither ", kSingleFile, " nor ", kIndexFile,
                         pickle ? "; pytorch_model.bin is pickle, which can run code and is not "
                                  "read: save the model as safetensors"
                                : ""));
  }
  files_.push_back(std::make_unique<SafetensorsFile>(single));
  for (const SafetensorsEntry& entry : files_[0]->tensors()) {
    tensors_.emplace(entry.name, Tensor{.file = files_[0].get(), .entry = &entry});
  }
}

void SafetensorsFolder::open_shards(const std::string& index_path) {
  const Json json = read_json_file(index_path, kIndexLimits);
  const JsonObject index(json, index_path);
  const JsonObject weights(index.at("weight_map"), index_path + ": 'weight_map'");
  std::map<std::string, SafetensorsFile*> shards;
  for (const auto& item : index.at("weight_map").items()) {
    const std::string name = json_string(item.value(), weights.name(item.key()));
    SafetensorsFile*& shard = shards[name];
    if (shard == nullptr) {
      if (files_.size() == kMaxShards) throw DataError(index_path + ": too many shards");
      files_.push_back(
          std::make_unique<SafetensorsFile>(OpenFile::beneath(path_, name, index_path)));
      shard = files_.back().get();
    }
    const SafetensorsEntry* entry = shard->find(item.key());
    if (entry == nullptr) {
      throw DataError(concat(index_path, ": places the tensor ", printable(item.key()), " in ",
                             printable(name), ", which does not hold it"));
    }
    tensors_.emplace(item.key(), Tensor{.file = shard, .entry = entry});
  }
  for (const auto& file : files_) {
    for (const SafetensorsEntry& entry : file->tensors()) {
      const auto found = tensors_.find(entry.name);
      if (found == tensors_.end() || found->second.file != file.get()) {
        throw DataError(concat(file->path(), ": holds the tensor ", printable(entry.name),
                               ", which the index does not place there"));
      }
    }
  }
}

std::string serialize_safetensors(std::vector<SafetensorsTensor> tensors,
                                  std::map<std::string, std::string> metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(-size_of(a.type), a.name) < std::pair(-size_of(b.type), b.name);
  });
  metadata.emplace("format", "pt");
  std::string json = "{\"__metadata__\":" + Json(metadata).dump();
  std::set<std::string_view> names;
  uint64_t end = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    SLUICE_CHECK(names.insert(tensor.name).second, "the tensor ", tensor.name, " twice");
    int64_t bytes = size_of(tensor.type);
    for (const int64_t dim : tensor.shape) bytes *= dim;
    SLUICE_CHECK(uint64_t(bytes) == tensor.bytes.size(), tensor.name, " has ", bytes,
                 " bytes, got ", tensor.bytes.size());
    const Json entry = {{"dtype", name_of(tensor.type)},
                        {"shape", tensor.shape},
                        {"data_offsets", {end, end + tensor.bytes.size()}}};
    json += "," + Json(tensor.name).dump() + ":" + entry.dump();
    end += tensor.bytes.size();
  }
  json += "}";
  json.resize(align_up(json.size(), 8), ' ');
  const uint64_t header_bytes = json.size();
  std::string file(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  file.reserve(sizeof(header_bytes) + header_bytes + end);
  file += json;
  for (const SafetensorsTensor& tensor : tensors) file += tensor.bytes;
  return file;
}

void write_safetensors(const std::string& path, std::vector<SafetensorsTensor> tensors,
                       std::map<std::string, std::string> metadata) {
  atomic_write_file(path, serialize_safetensors(std::move(tensors), std::move(metadata)));
}

}  // namespace sluice
