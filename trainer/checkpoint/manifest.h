// manifest.json: what a checkpoint holds, where, and how one can tell that it is whole. It is
// written last, so a folder without a good manifest is no checkpoint.
//
// The file is JSON, one tensor a line; its last member is the XXH3-128 of the file's bytes with
// that member's 32 digits replaced by zeros.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "layers/parameter_store.h"
#include "trainer/checkpoint/region.h"

namespace sluice {

inline constexpr int64_t kManifestVersion = 1;
inline constexpr const char* kManifestName = "manifest.json";
inline constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;

// Which files a tensor is in: weights can be loaded without the optimizer's state.
enum class TensorKind : uint8_t { model, optim };
const char* name_of(TensorKind kind);

// What decides bits besides the program: resuming under another one is allowed, and said.
struct RuntimeInfo {
  int64_t threads = 1;
  std::string blas;          // "openblas"
  std::string blas_version;  // "0.3.21"
  std::string isa;           // "avx512"
  std::string device = {};   // "cpu"; "NVIDIA H100 80GB HBM3, cuBLASLt 13.0.2, NCCL 2.28.3"

  friend bool operator==(const RuntimeInfo& a, const RuntimeInfo& b) = default;
};

// Everything but tensors; the same on every rank.
struct TrainingState {
  int64_t step = 0;  // optimizer steps done, skipped ones included
  std::string sluice_version;
  std::string git;
  std::string config;  // resolved, as text
  int64_t world_size = 1;
  std::map<std::string, int64_t> mesh;             // axis -> size
  nlohmann::json data = nlohmann::json::object();  // the cursor; only its owner reads it
  uint64_t rng_seed = 0;
  int64_t rng_step = 0;
  int64_t optimizer_t = 0;  // updates applied
  RuntimeInfo runtime;
  double loss = std::numeric_limits<double>::quiet_NaN();  // of the step; NaN: none yet
};

struct StoredPiece {
  Region region = {};
  std::string file;
  std::string dataset;  // of one dim, region.count() elements
  std::string hash;     // XXH3-128 of the elements, little-endian
};

struct StoredTensor {
  std::string name;
  TensorKind kind = TensorKind::model;
  DType dtype = DType::f32;
  Dims dims;                         // global
  std::vector<ParameterPart> parts;  // of a packed projection, in rows
  std::vector<StoredPiece> pieces;
};

struct StoredFile {
  std::string name;
  int64_t bytes = 0;
  std::string hash;  // XXH3-128
};

struct Manifest {
  TrainingState state;
  std::vector<StoredTensor> tensors;
  std::vector<StoredFile> files;
  std::string hash;  // its own: filled in by parse_manifest()
};

// The text of the file. Throws Error(bug) for state that is no UTF-8.
std::string to_text(const Manifest& manifest);

// Throws DataError naming `path` and the JSON member: bad hash, missing members, wrong types,
// numbers out of range, hostile names, pieces that do not cover every element of every tensor
// exactly once, files too small for what they are said to hold.
Manifest parse_manifest(std::string_view text, const std::string& path);

// The last of these checks alone, for a manifest that is about to be written. `where` starts the
// message.
void check_manifest(const Manifest& manifest, const std::string& where);

// A plain name for a file in the checkpoint's folder: letters, digits, '.', '_', '-'; not hidden.
bool safe_file_name(std::string_view name);
// Printable ASCII, '/' only between non-empty components, none of them "." or "..".
bool safe_tensor_name(std::string_view name);

// One tensor or file, as the ranks report them to rank 0.
class JsonNode;
nlohmann::ordered_json to_json(const StoredTensor& tensor);
nlohmann::ordered_json to_json(const StoredFile& file);
StoredTensor tensor_from_json(const JsonNode& node);
StoredFile file_from_json(const JsonNode& node);

}  // namespace sluice
