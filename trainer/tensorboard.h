// TensorBoard's event files, encoded by hand: no protobuf library for four message types.
//
// A record is u64 length, u32 masked_crc32c(length bytes), data, u32 masked_crc32c(data), all
// little-endian. The data is a protobuf Event: 1 wall_time double, 2 step int64, 3 file_version
// string, 5 summary {1 value {1 tag string, 2 simple_value float}}, 7 session_log {1 status}.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trainer/append_file.h"

namespace sluice {

uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

// One framed record.
std::string tensorboard_record(std::string_view data);
// The data of events.
std::string version_event(double wall_time);
// Tells readers to drop what other files hold from `step` on: a run that resumed there.
std::string restart_event(double wall_time, int64_t step);
std::string scalars_event(double wall_time, int64_t step,
                          const std::vector<std::pair<std::string, double>>& values);

class TensorboardWriter {
 public:
  // A new file in `folder`; `first_step` is the step that will be written first. Throws IoError.
  TensorboardWriter(const std::string& folder, int64_t first_step, Warn warn);

  void write(int64_t step, const std::vector<std::pair<std::string, double>>& values);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  AppendFile file_;
};

}  // namespace sluice
