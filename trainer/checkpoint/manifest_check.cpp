// Whether a manifest makes sense as a whole: names, and pieces that cover every tensor once.
#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <set>

#include "kernels/core/error.h"
#include "trainer/checkpoint/manifest.h"

namespace sluice {

namespace {

// Bounds the memory that a hostile manifest can ask for; a cut along the last dim of a stack of
// expert matrices has some 10^5.
constexpr int64_t kMaxRuns = int64_t{1} << 22;

struct OwnedRun {
  Run run;
  const StoredPiece* piece = nullptr;
};

std::vector<OwnedRun> sorted_runs(const StoredTensor& tensor, const std::string& where) {
  int64_t count = 0;
  for (const StoredPiece& piece : tensor.pieces) {
    count += std::min(num_runs(tensor.dims, piece.region), kMaxRuns + 1);
    if (count > kMaxRuns)
      throw DataError(fmt::format("{}: tensor {}: cut into more than {} runs of elements", where,
                                  tensor.name, kMaxRuns));
  }
  std::vector<OwnedRun> runs;
  runs.reserve(count);
  for (const StoredPiece& piece : tensor.pieces) {
    for (const Run& run : runs_of(tensor.dims, piece.region)) runs.push_back({run, &piece});
  }
  std::sort(runs.begin(), runs.end(),
            [](const OwnedRun& a, const OwnedRun& b) { return a.run.tensor < b.run.tensor; });
  return runs;
}

// Every element exactly once.
void check_coverage(const StoredTensor& tensor, const std::string& where) {
  int64_t next = 0;
  const StoredPiece* before = nullptr;
  for (const OwnedRun& owned : sorted_runs(tensor, where)) {
    if (owned.run.tensor < next) {
      throw DataError(fmt::format("{}: tensor {}: element {} is stored twice, in {} and in {}",
                                  where, tensor.name, owned.run.tensor, before->file,
                                  owned.piece->file));
    }
    if (owned.run.tensor > next) break;
    next = owned.run.tensor + owned.run.count;
    before = owned.piece;
  }
  if (next != tensor.dims.numel()) {
    throw DataError(fmt::format("{}: tensor {} {}: element {} of {} is stored nowhere", where,
                                tensor.name, to_string(tensor.dims), next, tensor.dims.numel()));
  }
}

}  // namespace

bool safe_file_name(std::string_view name) {
  if (name.empty() || name.size() > 255 || name.front() == '.' || name.front() == '-') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

bool safe_tensor_name(std::string_view name) {
  if (name.empty() || name.size() > 512) return false;
  if (!std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c < '\x7f'; }))
    return false;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    const std::string_view component = name.substr(begin, end - begin);
    if (component.empty() || component == "." || component == "..") return false;
    begin = end + 1;
  }
  return true;
}

void check_manifest(const Manifest& manifest, const std::string& where) {
  std::map<std::string, int64_t> room;  // bytes of each file not yet claimed by a piece
  for (const StoredFile& file : manifest.files) {
    if (!room.emplace(file.name, file.bytes).second)
      throw DataError(fmt::format("{}: file {} is listed twice", where, file.name));
  }
  std::set<std::string> names;
  std::set<std::pair<std::string, std::string>> datasets;
  for (const StoredTensor& tensor : manifest.tensors) {
    if (!names.insert(tensor.name).second)
      throw DataError(fmt::format("{}: tensor {} is listed twice", where, tensor.name));
    for (const StoredPiece& piece : tensor.pieces) {
      const auto file = room.find(piece.file);
      if (file == room.end())
        throw DataError(fmt::format("{}: tensor {}: its file {} is not in the list of files", where,
                                    tensor.name, piece.file));
      if (!datasets.emplace(piece.file, piece.dataset).second)
        throw DataError(fmt::format("{}: tensor {}: another piece has dataset {} of {} already",
                                    where, tensor.name, piece.dataset, piece.file));
      const int64_t size = int64_t(size_of(tensor.dtype));
      if (piece.region.count() > file->second / size)
        throw DataError(fmt::format("{}: file {} is too small for the pieces it is said to hold",
                                    where, piece.file));
      file->second -= piece.region.count() * size;
    }
    check_coverage(tensor, where);
  }
}

}  // namespace sluice
