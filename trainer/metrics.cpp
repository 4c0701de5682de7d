#include "trainer/metrics.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/files.h"
#include "kernels/core/error.h"
#include "trainer/scalars.h"

namespace sluice {

std::vector<std::pair<std::string, double>> StepMetrics::numbers() const {
  std::vector<std::pair<std::string, double>> out = {
      {"step", double(step)},     {"loss", loss},
      {"grad_norm", grad_norm},   {"lr", lr},
      {"tokens", double(tokens)}, {"tokens_per_s", tokens_per_s},
      {"step_s", step_s},         {"data_wait_s", data_wait_s}};
  const auto add = [&](const char* key, const std::optional<double>& value) {
    if (value) out.emplace_back(key, *value);
  };
  add("mfu", mfu);
  add("aux_loss", aux_loss);
  add("expert_load_max_over_mean", expert_load_max_over_mean);
  add("memory_gib", memory_gib);
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

std::string to_json_line(const StepMetrics& metrics) {
  std::string line = "{";
  for (const auto& [key, value] : metrics.numbers()) {
    const bool whole = key == "step" || key == "tokens";
    if (line.size() > 1) line += ", ";
    line += '"' + key + "\": ";
    line += whole ? std::to_string(int64_t(value)) : format_json_number(value);
  }
  if (metrics.skipped) line += ", \"skipped\": true";
  return line + "}";
}

std::string to_log_line(const StepMetrics& metrics, int64_t steps) {
  std::string line = fmt::format("step {}/{}", metrics.step, steps);
  for (const auto& [key, value] : metrics.numbers()) {
    if (key == "step") continue;
    line += key == "tokens" ? fmt::format("  {} {}", key, metrics.tokens)
                            : fmt::format("  {} {:.6g}", key, value);
  }
  return metrics.skipped ? line + "  skipped" : line;
}

std::vector<std::pair<std::string, double>> tensorboard_values(const StepMetrics& metrics) {
  struct Tag {
    const char* key;
    const char* tag;
    double factor;
  };
  constexpr Tag kTags[] = {{"loss", "loss_metrics/global_avg_loss", 1},
                           {"tokens_per_s", "throughput(tps)", 1},
                           {"mfu", "mfu(%)", 100},
                           {"memory_gib", "memory/allocated(GiB)", 1},
                           {"valid_loss", "validation_metrics/loss", 1}};
  std::vector<std::pair<std::string, double>> values = metrics.numbers();
  std::erase_if(values, [](const auto& value) { return value.first == "step"; });
  for (auto& [key, value] : values) {
    for (const Tag& tag : kTags) {
      if (key != tag.key) continue;
      key = tag.tag;
      value *= tag.factor;
      break;
    }
  }
  return values;
}

void truncate_metrics(const std::string& path, int64_t step) {
  if (!std::filesystem::exists(path)) return;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw IoError("cannot read " + path);
  std::string kept, line;
  int64_t number = 0;
  while (std::getline(file, line)) {
    ++number;
    const bool torn = file.eof();  // no end of line
    if (torn) break;
    const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_object() || !object.contains("step") || !object["step"].is_number_integer()) {
      throw DataError(
          fmt::format("{}:{}: expected an object with a step; move the file away", path, number));
    }
    if (object["step"].get<int64_t>() <= step) kept += line + "\n";
  }
  if (file.bad()) throw IoError("cannot read " + path);
  file.close();
  if (kept.size() != std::filesystem::file_size(path)) atomic_write_file(path, kept);
}

}  // namespace sluice
