// The progress line: one that is rewritten on a terminal, plain lines elsewhere.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "trainer/metrics.h"

namespace sluice {

struct TerminalStyle {
  bool rewrite = false;  // a terminal: the line stays in its place
  bool color = false;    // and NO_COLOR is not set
};
TerminalStyle style_of(std::FILE* stream);

// 950, 12.3k, 4.56M.
std::string short_count(double value);
// 42s, 3m12s, 5h07m, 2d04h.
std::string short_duration(double seconds);

// step 120/1000  loss 2.3451  grad 0.81  lr 5.9e-04  12.3k tok/s  mfu 41%  wait 0.3%  left 3m12s
std::string progress_line(const StepMetrics& metrics, int64_t steps, double seconds_left);

class Progress {
 public:
  // `stream` must outlive it.
  Progress(std::FILE* stream, TerminalStyle style, int64_t steps, int64_t every);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show(const StepMetrics& metrics);
  // A line that stays, above the progress line.
  void note(const std::string& text);
  // Ends the rewritten line.
  void finish();

 private:
  void put(const std::string& text);

  std::FILE* stream_;
  TerminalStyle style_;
  int64_t steps_;
  int64_t every_;
  double mean_step_s_ = 0;  // exponential, over about 20 steps
  std::string shown_;       // on the terminal now
};

}  // namespace sluice
