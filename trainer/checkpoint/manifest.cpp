#include "trainer/checkpoint/manifest.h"

#include <fmt/core.h>

#include <cctype>
#include <cmath>
#include <cstdlib>

#include "data/files.h"
#include "kernels/core/error.h"
#include "trainer/checkpoint/json_node.h"

namespace sluice {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxPieces = 1'000'000;  // of one tensor
constexpr size_t kMaxFiles = 1'000'000;
constexpr int64_t kMaxValues = int64_t{1} << 23;  // some 25 a piece
constexpr size_t kMaxName = 512;
constexpr size_t kMaxConfig = 4 << 20;
constexpr int64_t kMaxCount = int64_t{1} << 53;  // exact in every JSON reader

// The file's end, around the digits of its hash.
constexpr std::string_view kHashHead = "\"manifest_hash\": \"";
constexpr std::string_view kHashTail = "\"\n}\n";
constexpr size_t kHashDigits = 32;

// Doubles as hexadecimal text: exact, and JSON has no NaN.
std::string hex_float(double value) {
  if (std::isnan(value)) return "nan";
  return fmt::format("{:a}", value);
}

double parse_hex_float(const JsonNode& node) {
  const std::string text = node.text(64);
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || std::isspace(static_cast<unsigned char>(text[0])))
    node.fail("expected a hexadecimal float");
  return value;
}

ordered_json to_json(const Dims& dims) {
  ordered_json list = ordered_json::array();
  for (int dim = 0; dim < dims.rank; ++dim) list.push_back(dims[dim]);
  return list;
}

Dims dims_from_json(const JsonNode& node) {
  Dims dims;
  int64_t numel = 1;
  for (const JsonNode& item : node.items(kMaxRank)) {
    dims.size[dims.rank] = item.integer(0, kMaxCount);
    if (__builtin_mul_overflow(numel, dims.size[dims.rank], &numel) || numel > kMaxCount)
      node.fail("a tensor of more than 2^53 elements");
    dims.rank += 1;
  }
  return dims;
}

DType dtype_from_json(const JsonNode& node) {
  constexpr DType kDTypes[] = {DType::f64, DType::f32, DType::i64,
                               DType::i32, DType::u16, DType::u8};
  return kDTypes[node.one_of({"f64", "f32", "i64", "i32", "u16", "u8"})];
}

std::string file_name_from_json(const JsonNode& node) {
  std::string name = node.text(kMaxName);
  if (!safe_file_name(name)) node.fail("not a plain file name in the checkpoint's folder");
  return name;
}

std::string tensor_name_from_json(const JsonNode& node) {
  std::string name = node.text(kMaxName);
  if (!safe_tensor_name(name)) node.fail("not a tensor's name");
  return name;
}

StoredPiece piece_from_json(const JsonNode& node, const Dims& dims) {
  StoredPiece piece;
  const JsonNode box = node.member("box");
  piece.region.start = dims_from_json(box.member("start"));
  piece.region.size = dims_from_json(box.member("size"));
  const std::vector<JsonNode> range = node.member("range").items(2);
  if (range.size() != 2) node.member("range").fail("expected [begin, end]");
  piece.region.begin = range[0].integer(0, kMaxCount);
  piece.region.end = range[1].integer(0, kMaxCount);
  if (!fits(dims, piece.region) || piece.region.count() == 0)
    node.fail("no part of a tensor " + to_string(dims));
  piece.file = file_name_from_json(node.member("file"));
  piece.dataset = tensor_name_from_json(node.member("dataset"));
  piece.hash = node.member("xxh3").hash();
  return piece;
}

ordered_json to_json(const StoredPiece& piece) {
  return {{"box", {{"start", to_json(piece.region.start)}, {"size", to_json(piece.region.size)}}},
          {"range", {piece.region.begin, piece.region.end}},
          {"file", piece.file},
          {"dataset", piece.dataset},
          {"xxh3", piece.hash}};
}

TrainingState state_from_json(const JsonNode& root) {
  TrainingState state;
  state.step = root.member("step").integer(0, kMaxCount);
  state.sluice_version = root.member("sluice_version").text(kMaxName);
  state.git = root.member("git").text(kMaxName);
  state.config = root.member("config").text(kMaxConfig);
  if (root.member("config_hash").hash() != xxh3_128_hex(state.config))
    root.member("config_hash").fail("is not the hash of \"config\"");
  state.world_size = root.member("world_size").integer(1, kMaxCount);
  for (const auto& [axis, size] : root.member("mesh").members(16))
    state.mesh[axis] = size.integer(1, kMaxCount);
  state.data = root.member("data").value();
  if (!state.data.is_object()) root.member("data").fail("expected an object");
  const JsonNode rng = root.member("rng");
  state.rng_seed = rng.member("seed").unsigned_integer();
  state.rng_step = rng.member("step").integer(0, kMaxCount);
  state.optimizer_t = root.member("optimizer").member("t").integer(0, kMaxCount);
  const JsonNode runtime = root.member("runtime");
  state.runtime.threads = runtime.member("threads").integer(1, kMaxCount);
  state.runtime.blas = runtime.member("blas").text(kMaxName);
  state.runtime.blas_version = runtime.member("blas_version").text(kMaxName);
  state.runtime.isa = runtime.member("isa").text(kMaxName);
  if (runtime.value().contains("device"))  // not in the first checkpoints of this version
    state.runtime.device = runtime.member("device").text(kMaxName);
  state.loss = parse_hex_float(root.member("loss"));
  return state;
}

void append_member(std::string& text, const char* key, const ordered_json& value) {
  text += fmt::format("\"{}\": {},\n", key, value.dump());
}

template <class Items>
void append_list(std::string& text, const char* key, const Items& items) {
  text += fmt::format("\"{}\": [", key);
  const char* separator = "\n";
  for (const auto& item : items) {
    text += separator + to_json(item).dump();
    separator = ",\n";
  }
  text += "\n],\n";
}

std::string text_without_hash(const Manifest& manifest) {
  const TrainingState& state = manifest.state;
  std::string text = "{\n\"format\": \"sluice checkpoint\",\n";
  append_member(text, "format_version", kManifestVersion);
  append_member(text, "sluice_version", state.sluice_version);
  append_member(text, "git", state.git);
  append_member(text, "step", state.step);
  append_member(text, "loss", hex_float(state.loss));
  append_member(text, "world_size", state.world_size);
  append_member(text, "mesh", state.mesh);
  append_member(text, "rng", {{"seed", state.rng_seed}, {"step", state.rng_step}});
  append_member(text, "optimizer", {{"t", state.optimizer_t}});
  append_member(text, "runtime",
                {{"threads", state.runtime.threads},
                 {"blas", state.runtime.blas},
                 {"blas_version", state.runtime.blas_version},
                 {"isa", state.runtime.isa},
                 {"device", state.runtime.device}});
  append_member(text, "data", state.data);
  append_member(text, "config_hash", xxh3_128_hex(state.config));
  append_member(text, "config", state.config);
  append_list(text, "files", manifest.files);
  append_list(text, "tensors", manifest.tensors);
  return text;
}

// Where the digits of the hash begin. Throws unless the file ends as to_text() ends it.
size_t find_hash(std::string_view text, const std::string& path) {
  const size_t length = kHashHead.size() + kHashDigits + kHashTail.size();
  const std::string_view end = text.substr(text.size() - std::min(length, text.size()));
  if (!end.starts_with(kHashHead) || !end.ends_with(kHashTail) || end.size() != length) {
    throw DataError(
        fmt::format("{}: cut off or damaged: expected its own hash at the end of its {} bytes",
                    path, text.size()));
  }
  return text.size() - kHashTail.size() - kHashDigits;
}

// Checks the file's hash and returns it.
std::string verify_hash(std::string_view text, const std::string& path) {
  const size_t digits = find_hash(text, path);
  std::string zeroed(text);
  zeroed.replace(digits, kHashDigits, kHashDigits, '0');
  const std::string expected(text.substr(digits, kHashDigits));
  const std::string actual = xxh3_128_hex(zeroed);
  if (expected != actual)
    throw DataError(fmt::format("{}: expected hash {}, got {}", path, expected, actual));
  return actual;
}

}  // namespace

const char* name_of(TensorKind kind) {
  switch (kind) {
    case TensorKind::model:
      return "model";
    case TensorKind::optim:
      return "optim";
  }
  throw Error(ExitCode::bug, "unknown kind of tensor");
}

ordered_json to_json(const StoredFile& file) {
  return {{"name", file.name}, {"bytes", file.bytes}, {"xxh3", file.hash}};
}

ordered_json to_json(const StoredTensor& tensor) {
  ordered_json parts = ordered_json::array();
  for (const ParameterPart& part : tensor.parts)
    parts.push_back({{"name", part.name}, {"rows", part.rows}});
  ordered_json pieces = ordered_json::array();
  for (const StoredPiece& piece : tensor.pieces) pieces.push_back(to_json(piece));
  return {{"name", tensor.name},
          {"kind", name_of(tensor.kind)},
          {"dtype", name_of(tensor.dtype)},
          {"shape", to_json(tensor.dims)},
          {"parts", std::move(parts)},
          {"pieces", std::move(pieces)}};
}

StoredFile file_from_json(const JsonNode& node) {
  return {.name = file_name_from_json(node.member("name")),
          .bytes = node.member("bytes").integer(0, kMaxCount),
          .hash = node.member("xxh3").hash()};
}

StoredTensor tensor_from_json(const JsonNode& node) {
  StoredTensor tensor;
  tensor.name = tensor_name_from_json(node.member("name"));
  tensor.kind = TensorKind(node.member("kind").one_of({"model", "optim"}));
  tensor.dtype = dtype_from_json(node.member("dtype"));
  tensor.dims = dims_from_json(node.member("shape"));
  for (const JsonNode& part : node.member("parts").items(64)) {
    tensor.parts.push_back({.name = part.member("name").text(kMaxName),
                            .rows = part.member("rows").integer(0, kMaxCount)});
  }
  for (const JsonNode& piece : node.member("pieces").items(kMaxPieces))
    tensor.pieces.push_back(piece_from_json(piece, tensor.dims));
  return tensor;
}

std::string to_text(const Manifest& manifest) {
  try {
    std::string text = text_without_hash(manifest);
    text += kHashHead;
    const size_t digits = text.size();
    text.append(kHashDigits, '0');
    text += kHashTail;
    text.replace(digits, kHashDigits, xxh3_128_hex(text));
    return text;
  } catch (const json::exception& error) {
    throw Error(ExitCode::bug, fmt::format("the training state is no JSON: {}", error.what()));
  }
}

Manifest parse_manifest(std::string_view text, const std::string& path) {
  Manifest manifest;
  manifest.hash = verify_hash(text, path);
  const json document =
      parse_json(text, path, {.max_bytes = kMaxManifestBytes, .max_values = kMaxValues});
  const JsonNode root(document, path);
  root.member("format").one_of({"sluice checkpoint"});
  const int64_t version = root.member("format_version").integer(1, kMaxCount);
  if (version != kManifestVersion) {
    root.member("format_version")
        .fail(fmt::format("expected {}, got {}; use the sluice that wrote it", kManifestVersion,
                          version));
  }
  manifest.state = state_from_json(root);
  for (const JsonNode& file : root.member("files").items(kMaxFiles))
    manifest.files.push_back(file_from_json(file));
  for (const JsonNode& tensor : root.member("tensors").items(kMaxTensors))
    manifest.tensors.push_back(tensor_from_json(tensor));
  check_manifest(manifest, path);
  return manifest;
}

}  // namespace sluice
