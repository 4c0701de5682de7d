// sluice data build | inspect
#include "data/import.h"

#include <fmt/format.h>

#include "trainer/commands/commands.h"

namespace sluice {
namespace {

std::string summary_line(const StoreSummary& store) {
  return fmt::format("{}: {} documents, {} tokens of {} bytes of text, {} bytes on disk\n",
                     store.path, store.documents, store.tokens, store.text_bytes, store.file_bytes);
}

// Nested JSON as indented lines of `key: value`.
void add_lines(const nlohmann::json& json, const std::string& indent, std::string& out) {
  for (const auto& [key, value] : json.items()) {
    if (value.is_structured() && !value.empty()) {
      out += indent + key + ":\n";
      add_lines(value, indent + "  ", out);
    } else {
      out += indent + key + ": " + (value.is_string() ? value.get<std::string>() : value.dump()) +
             "\n";
    }
  }
}

}  // namespace

int run_data_build(const DataBuildOptions& options) {
  const BuildSummary summary = build_store(options.build);
  if (options.json) {
    print(to_json(summary).dump(2) + "\n");
    return 0;
  }
  print(summary_line(summary.train));
  if (!summary.valid.path.empty()) print(summary_line(summary.valid));
  if (summary.empty_documents > 0) {
    print(fmt::format("{} empty documents were left out\n", summary.empty_documents));
  }
  return 0;
}

int run_data_inspect(const DataInspectOptions& options) {
  const nlohmann::json json = inspect_store(options.store, options.samples, options.tokens);
  if (options.json) {
    print(json.dump(2) + "\n");
    return 0;
  }
  std::string text;
  add_lines(json, "", text);
  print(text);
  return 0;
}

}  // namespace sluice
