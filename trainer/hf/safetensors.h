// safetensors files: tensors by name, in one flat file or in a folder of shards.
//
//   u64 little-endian n | n bytes of JSON, padded with spaces | data
//   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
//
// A file is checked in full before any tensor is touched: the header's size against the file's, the
// JSON's form, each dtype and shape against its range, and that the ranges tile the data exactly,
// without a hole, an overlap or a byte left over. Nothing is allocated by an unchecked number.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/dtype.h"
#include "trainer/open_file.h"

namespace sluice {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  // bytes, as other readers have it
inline constexpr size_t kMaxSafetensorsRank = 16;

enum class SafetensorsType : uint8_t { F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL };
const char* name_of(SafetensorsType type);
int64_t size_of(SafetensorsType type);

struct SafetensorsEntry {
  std::string name;
  SafetensorsType type = SafetensorsType::F32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // of the data, from the header's end
  uint64_t end = 0;

  int64_t numel() const { return int64_t(end - begin) / size_of(type); }
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // sorted by name
  std::map<std::string, std::string> metadata;
};

// Checks everything that can be known without reading the data. Throws DataError naming `where` and
// the tensor or the byte of the file.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes,
                                           const std::string& where);

class SafetensorsFile {
 public:
  // Throws IoError if the file cannot be opened, DataError if it is not valid.
  explicit SafetensorsFile(const std::string& path);
  SafetensorsFile(OpenFile file);

  const std::string& path() const { return file_.path(); }
  const std::vector<SafetensorsEntry>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const SafetensorsEntry* find(std::string_view name) const;  // null if there is none

  // The entry's bytes as they are.
  void read_bytes(const SafetensorsEntry& entry, void* out) const;
  // The elements of a floating tensor as f32 or f64. Throws DataError for another type, and for an
  // F64 value that f32 does not hold: nothing is rounded silently.
  void read_values(const SafetensorsEntry& entry, DType dtype, void* out) const;

 private:
  template <class T>
  void read_as(const SafetensorsEntry& entry, T* out) const;

  OpenFile file_;
  uint64_t data_begin_ = 0;
  SafetensorsHeader header_;
};

// The tensors of a Hugging Face folder: model.safetensors, or the shards that
// model.safetensors.index.json names. The names in the index are not trusted: they are plain file
// names, opened beneath the folder and through no symbolic link.
class SafetensorsFolder {
 public:
  struct Tensor {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
  };

  explicit SafetensorsFolder(const std::string& folder);

  const std::string& path() const { return path_; }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

 private:
  void open_shards(const std::string& index_path);

  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Tensor> tensors_;
};

struct SafetensorsTensor {
  std::string name;
  SafetensorsType type = SafetensorsType::F32;
  std::vector<int64_t> shape;
  std::string_view bytes;
};

// The bytes of a file: by descending element size, then by name, the header padded to a multiple of
// 8, "format": "pt" in the metadata (transformers refuses files without it).
std::string serialize_safetensors(std::vector<SafetensorsTensor> tensors,
                                  std::map<std::string, std::string> metadata = {});
void write_safetensors(const std::string& path, std::vector<SafetensorsTensor> tensors,
                       std::map<std::string, std::string> metadata = {});

}  // namespace sluice
