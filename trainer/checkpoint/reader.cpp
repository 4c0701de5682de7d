#include "trainer/checkpoint/reader.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "kernels/core/error.h"
#include "trainer/checkpoint/piece_reader.h"
#include "trainer/suggest.h"

namespace sluice {

namespace {

constexpr size_t kNamed = 8;  // tensors named in a message, of each sort

using SinksByName = std::map<std::string, std::vector<const TensorSink*>>;

std::string describe(DType dtype, const Dims& dims) {
  return fmt::format("{} {}", name_of(dtype), to_string(dims));
}

// "  missing in the checkpoint (12): a; b; ... and 4 more", on a line of its own.
std::string listed(const char* title, const std::vector<std::string>& entries) {
  if (entries.empty()) return "";
  std::string text = fmt::format("\n  {} ({}): ", title, entries.size());
  for (size_t index = 0; index < std::min(entries.size(), kNamed); ++index)
    text += (index == 0 ? "" : ", ") + entries[index];
  if (entries.size() > kNamed) text += fmt::format(" and {} more", entries.size() - kNamed);
  return text;
}

bool in_scope(const StoredTensor& tensor, LoadScope scope) {
  return scope == LoadScope::all || tensor.kind == TensorKind::model;
}

// Throws unless the sinks' tensors are the checkpoint's.
void match(const std::string& folder, const Manifest& manifest, const SinksByName& sinks,
           LoadScope scope) {
  std::map<std::string, const StoredTensor*> stored;
  std::vector<std::string> unexpected;
  for (const StoredTensor& tensor : manifest.tensors) {
    if (!in_scope(tensor, scope)) continue;
    stored.emplace(tensor.name, &tensor);
    if (!sinks.contains(tensor.name)) unexpected.push_back(tensor.name);
  }
  std::vector<std::string> missing;
  std::vector<std::string> mismatching;
  for (const auto& [name, wanted] : sinks) {
    const auto found = stored.find(name);
    if (found == stored.end()) {
      const std::string meant = nearest(name, unexpected);
      missing.push_back(meant.empty() ? name : fmt::format("{} (is it {}?)", name, meant));
      continue;
    }
    const StoredTensor& tensor = *found->second;
    for (const TensorSink* sink : wanted) {
      if (sink->dtype == tensor.dtype && sink->dims == tensor.dims) continue;
      mismatching.push_back(fmt::format("{}: checkpoint {}, model {}", name,
                                        describe(tensor.dtype, tensor.dims),
                                        describe(sink->dtype, sink->dims)));
      break;
    }
  }
  if (missing.empty() && unexpected.empty() && mismatching.empty()) return;
  throw DataError(folder + ": the checkpoint is of another model" +
                  listed("missing in the checkpoint", missing) +
                  listed("not in the model", unexpected) + listed("different", mismatching));
}

// Copies between runs of elements that are sorted by their place in the tensor.
class Scatter {
 public:
  Scatter(const StoredTensor& tensor, const TensorSink& sink)
      : size_(size_of(tensor.dtype)), out_(static_cast<char*>(sink.data)) {
    SLUICE_CHECK(sink.data != nullptr || sink.region.count() == 0, "no memory for ", sink.name);
    runs_ = runs_of(tensor.dims, sink.region);
  }

  bool wants(const Run& run) const {
    const auto first = first_after(run.tensor);
    return first != runs_.end() && first->tensor < run.tensor + run.count;
  }

  // `elements` are those of `run`.
  void copy(const Run& run, const char* elements) const {
    const int64_t stop = run.tensor + run.count;
    for (auto to = first_after(run.tensor); to != runs_.end() && to->tensor < stop; ++to) {
      const int64_t begin = std::max(run.tensor, to->tensor);
      const int64_t end = std::min(stop, to->tensor + to->count);
      std::memcpy(out_ + (to->local + begin - to->tensor) * size_,
                  elements + (begin - run.tensor) * size_, (end - begin) * size_);
    }
  }

 private:
  // The first run that ends behind an element.
  std::vector<Run>::const_iterator first_after(int64_t element) const {
    return std::partition_point(runs_.begin(), runs_.end(), [element](const Run& run) {
      return run.tensor + run.count <= element;
    });
  }

  int64_t size_;
  char* out_;
  std::vector<Run> runs_;
};

// Hands elements [first, first + count) of a piece, whose runs are `runs`, to the sinks.
void scatter_block(const std::vector<Run>& runs, int64_t first, int64_t count, int64_t size,
                   const char* elements, const std::vector<Scatter>& sinks) {
  auto run = std::partition_point(runs.begin(), runs.end(), [first](const Run& candidate) {
    return candidate.local + candidate.count <= first;
  });
  for (; run != runs.end() && run->local < first + count; ++run) {
    const int64_t begin = std::max(first, run->local);
    const int64_t end = std::min(first + count, run->local + run->count);
    const Run part{.tensor = run->tensor + begin - run->local, .local = 0, .count = end - begin};
    for (const Scatter& sink : sinks) sink.copy(part, elements + (begin - first) * size);
  }
}

bool wanted(const std::vector<Run>& runs, const std::vector<Scatter>& sinks) {
  for (const Run& run : runs) {
    for (const Scatter& sink : sinks) {
      if (sink.wants(run)) return true;
    }
  }
  return false;
}

struct NeededPiece {
  const StoredTensor* tensor = nullptr;
  const StoredPiece* piece = nullptr;
};

// A file of pieces, opened when the first of them is wanted.
class PieceFile {
 public:
  PieceFile(const std::string& folder, const std::string& name) : folder_(folder), name_(name) {}

  void load(const NeededPiece& needed, const std::vector<const TensorSink*>& sinks) {
    const StoredTensor& tensor = *needed.tensor;
    std::vector<Scatter> scatters;
    for (const TensorSink* sink : sinks) scatters.emplace_back(tensor, *sink);
    const std::vector<Run> runs = runs_of(tensor.dims, needed.piece->region);
    if (!wanted(runs, scatters)) return;
    if (!reader_) reader_.emplace(folder_, name_);
    const int64_t size = int64_t(size_of(tensor.dtype));
    reader_->read(tensor, *needed.piece, [&](int64_t first, int64_t count, const void* elements) {
      scatter_block(runs, first, count, size, static_cast<const char*>(elements), scatters);
    });
  }

 private:
  const std::string& folder_;
  const std::string& name_;
  std::optional<PieceReader> reader_;
};

}  // namespace

void load_checkpoint(const std::string& folder, const Manifest& manifest,
                     const std::vector<TensorSink>& sinks, LoadScope scope) {
  SinksByName by_name;
  for (const TensorSink& sink : sinks) by_name[sink.name].push_back(&sink);
  match(folder, manifest, by_name, scope);

  // File by file, since opening one costs.
  std::map<std::string, std::vector<NeededPiece>> by_file;
  for (const StoredTensor& tensor : manifest.tensors) {
    if (!in_scope(tensor, scope)) continue;
    for (const StoredPiece& piece : tensor.pieces) by_file[piece.file].push_back({&tensor, &piece});
  }
  for (const auto& [name, pieces] : by_file) {
    PieceFile file(folder, name);
    for (const NeededPiece& needed : pieces) file.load(needed, by_name.at(needed.tensor->name));
  }
}

}  // namespace sluice
