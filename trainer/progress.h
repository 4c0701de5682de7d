// The progress line: one that is rewritten on a terminal, plain lines elsewhere.
#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>
#include <optional>
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

// How far a value lies from the mean of up to 128 finite ones before it, in their standard
// deviations: a jump shows at a glance. Nothing before 16 of them, or where they are all the same.
class ZScore {
 public:
  std::optional<double> add(double value);

 private:
  std::deque<double> window_;
};

struct Outliers {
  std::optional<double> loss = {};
  std::optional<double> grad_norm = {};
};

// step 120/1000  loss 2.3451 (+0.4z)  grad 0.81 (-1.2z)  lr 5.9e-04  12.3k tok/s  mfu 41%  wait
// 0.3%  left 3m12s, on one line
std::string progress_line(const StepMetrics& metrics, int64_t steps, double seconds_left,
                          const Outliers& outliers = {});

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
  ZScore loss_, grad_norm_;
  double mean_step_s_ = 0;  // exponential, over about 20 steps
  std::string shown_;       // on the terminal now
};

}  // namespace sluice
