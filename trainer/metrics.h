// metrics.jsonl: exactly one object per optimizer step, whatever log.every says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/append_file.h"

namespace sluice {

struct StepMetrics {
  int64_t step = 0;  // of the update, from 1
  double loss = 0;   // cross-entropy alone, per target token
  double grad_norm = 0;
  double lr = 0;
  int64_t tokens = 0;  // input positions so far
  double tokens_per_s = 0;
  double step_s = 0;
  double data_wait_s = 0;
  std::optional<double> mfu = {};
  std::optional<double> aux_loss = {};
  std::optional<double> expert_load_max_over_mean = {};
  std::optional<double> memory_gib = {};
  bool skipped = false;  // not finite: the update was not applied; written only if true
  std::vector<std::pair<std::string, double>> more = {};  // valid_loss, ...

  // Every number with its key, in the order of the file.
  std::vector<std::pair<std::string, double>> numbers() const;
};

// One line without its end. Numbers are shortest round-trip; not finite: null, so that the line
// stays JSON.
std::string to_json_line(const StepMetrics& metrics);
// The same for log.txt, for people who grep.
std::string to_log_line(const StepMetrics& metrics, int64_t steps);

// The numbers under the tags that people look for in TensorBoard.
std::vector<std::pair<std::string, double>> tensorboard_values(const StepMetrics& metrics);

class MetricsWriter {
 public:
  MetricsWriter(const std::string& path, Warn warn) : file_(path, std::move(warn)) {}

  void write(const StepMetrics& metrics) { file_.append(to_json_line(metrics) + "\n"); }
  // The lines so far are on the disk: before a checkpoint of their step commits.
  bool sync() { return file_.sync(); }

 private:
  AppendFile file_;
};

// Drops what lies after `step`, and a torn last line, by temporary file and rename; no file is
// fine. For resuming from the checkpoint of `step`. Throws IoError; DataError where a line is no
// object with a step.
void truncate_metrics(const std::string& path, int64_t step);

}  // namespace sluice
