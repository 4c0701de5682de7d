// The other half of name_table.h: what a folder holds against what the table asks for.
#include <cstring>
#include <set>

#include "kernels/core/error.h"
#include "trainer/hf/name_table.h"
#include "trainer/json_file.h"
#include "trainer/suggest.h"

namespace sluice {

namespace {

constexpr size_t kMaxListed = 6;  // names of a kind in one message
constexpr const char* kHead = "lm_head.weight";

std::string list(const std::vector<std::string>& items) {
  std::string text;
  for (size_t i = 0; i < std::min(items.size(), kMaxListed); ++i) {
    text += (i == 0 ? "" : ", ") + items[i];
  }
  if (items.size() > kMaxListed) text += concat(" and ", items.size() - kMaxListed, " more");
  return text;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += concat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

// Prediction heads for further tokens, which neither transformers nor sluice computes.
bool ignored(HfFamily family, const std::string& name) {
  return family == HfFamily::nemotron_h && name.starts_with("mtp.");
}

const SourceTensor* embedding_of(const std::vector<SourceTensor>& tensors) {
  return &tensors.front();
}

}  // namespace

void check_hf_tensors(HfFamily family, const std::vector<SourceTensor>& tensors,
                      const SafetensorsFolder& folder) {
  std::set<std::string> wanted;
  std::vector<std::string> missing;
  std::vector<std::string> shapes;
  for (const SourceTensor& tensor : tensors) {
    wanted.insert(tensor.name);
    const auto found = folder.tensors().find(tensor.name);
    if (found == folder.tensors().end()) {
      missing.push_back(tensor.name);
    } else if (found->second.entry->shape != tensor.shape) {
      shapes.push_back(concat(tensor.name, " is ", shape_text(found->second.entry->shape),
                              " in the file, config.json asks for ", shape_text(tensor.shape)));
    }
  }
  std::vector<std::string> unexpected;
  for (const auto& [name, tensor] : folder.tensors()) {
    const bool second_head = name == kHead;  // compared with the embedding when it is loaded
    if (wanted.contains(name) || second_head || ignored(family, name)) continue;
    unexpected.push_back(printable(name) +
                         (unexpected.size() < kMaxListed ? did_you_mean(name, missing) : ""));
  }
  std::string problems;
  if (!missing.empty()) problems += "\n  missing: " + list(missing);
  if (!unexpected.empty()) problems += "\n  unexpected: " + list(unexpected);
  if (!shapes.empty()) problems += "\n  shapes: " + list(shapes);
  if (!problems.empty()) {
    throw DataError(concat(folder.path(), ": the tensors do not fit config.json", problems));
  }
}

void load_hf_tensors(const std::vector<SourceTensor>& tensors, const SafetensorsFolder& folder,
                     ParameterStore& store) {
  bool has_head = false;
  for (const SourceTensor& tensor : tensors) {
    has_head |= tensor.name == kHead;
    const SafetensorsFolder::Tensor& stored = folder.tensors().at(tensor.name);
    SLUICE_CHECK(stored.entry->numel() == tensor.numel(), tensor.name, " was not checked");
    const TensorView value = store.value(tensor.parameter);
    char* out = static_cast<char*>(value.data) + tensor.begin * int64_t(size_of(store.dtype()));
    stored.file->read_values(*stored.entry, store.dtype(), out);
  }
  const auto head = folder.tensors().find(kHead);
  if (has_head || head == folder.tensors().end()) return;
  const SafetensorsFolder::Tensor& second = head->second;
  const SafetensorsFolder::Tensor& first = folder.tensors().at(embedding_of(tensors)->name);
  const auto bytes_of = [](const SafetensorsFolder::Tensor& tensor) {
    std::string bytes(tensor.entry->end - tensor.entry->begin, '\0');
    tensor.file->read_bytes(*tensor.entry, bytes.data());
    return bytes;
  };
  if (first.entry->type != second.entry->type || first.entry->shape != second.entry->shape ||
      bytes_of(first) != bytes_of(second)) {
    throw DataError(concat(folder.path(), ": tie_word_embeddings is true, but ", kHead,
                           " differs from ", first.entry->name,
                           "; set it to false if the head is to be kept"));
  }
}

}  // namespace sluice
