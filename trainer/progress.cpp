#include "trainer/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <numeric>

namespace sluice {

TerminalStyle style_of(std::FILE* stream) {
  const char* term = std::getenv("TERM");
  const bool dumb = term == nullptr || std::string(term) == "dumb";
  const bool terminal = ::isatty(::fileno(stream)) == 1 && !dumb;
  const char* no_color = std::getenv("NO_COLOR");
  const bool color = no_color == nullptr || *no_color == '\0';
  return {.rewrite = terminal, .color = terminal && color};
}

std::string short_count(double value) {
  if (!(value >= 999.5)) return fmt::format("{:.0f}", value);
  for (const char* unit : {"k", "M", "G"}) {
    value /= 1000;
    if (value < 999.5) return fmt::format("{:.3g}{}", value, unit);
  }
  return fmt::format("{:.3g}T", value / 1000);
}

std::string short_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto s = int64_t(std::llround(seconds));
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d{:02}h", s / 86400, s / 3600 % 24);
}

// Recomputed from the window: 128 values are nothing beside a step, and no error adds up.
std::optional<double> ZScore::add(double value) {
  constexpr size_t kWindow = 128, kLeast = 16;
  if (!std::isfinite(value)) return std::nullopt;
  std::optional<double> score;
  if (window_.size() >= kLeast) {
    const double count = double(window_.size());
    const double mean = std::accumulate(window_.begin(), window_.end(), 0.0) / count;
    double squares = 0;
    for (const double old : window_) squares += (old - mean) * (old - mean);
    if (squares > 0) score = (value - mean) / std::sqrt(squares / count);
  }
  window_.push_back(value);
  if (window_.size() > kWindow) window_.pop_front();
  return score;
}

std::string progress_line(const StepMetrics& metrics, int64_t steps, double seconds_left,
                          const Outliers& outliers) {
  const auto scored = [](const std::optional<double>& z) {
    return z ? fmt::format(" ({:+.1f}z)", *z) : "";
  };
  std::string line =
      fmt::format("step {}/{}  loss {:.4f}{}  grad {:.3g}{}  lr {:.2e}  {} tok/s", metrics.step,
                  steps, metrics.loss, scored(outliers.loss), metrics.grad_norm,
                  scored(outliers.grad_norm), metrics.lr, short_count(metrics.tokens_per_s));
  if (metrics.mfu) line += fmt::format("  mfu {:.1f}%", 100 * *metrics.mfu);
  if (metrics.memory_gib) line += fmt::format("  mem {:.2f} GiB", *metrics.memory_gib);
  const double wait = metrics.step_s > 0 ? metrics.data_wait_s / metrics.step_s : 0;
  line += fmt::format("  wait {:.1f}%  left {}", 100 * wait, short_duration(seconds_left));
  for (const auto& [key, value] : metrics.more) line += fmt::format("  {} {:.4f}", key, value);
  return metrics.skipped ? line + "  skipped: not finite" : line;
}

Progress::Progress(std::FILE* stream, TerminalStyle style, int64_t steps, int64_t every)
    : stream_(stream), style_(style), steps_(steps), every_(every) {}

Progress::~Progress() { finish(); }

void Progress::show(const StepMetrics& metrics) {
  constexpr double kNewShare = 0.1;
  const bool first = mean_step_s_ == 0;
  mean_step_s_ += (first ? 1 : kNewShare) * (metrics.step_s - mean_step_s_);
  const Outliers outliers{.loss = loss_.add(metrics.loss),
                          .grad_norm = grad_norm_.add(metrics.grad_norm)};
  const bool due = metrics.step % every_ == 0 || metrics.step == steps_ || first;
  if (!due && metrics.more.empty() && !metrics.skipped) return;
  const double seconds_left = mean_step_s_ * double(steps_ - metrics.step);
  const std::string line = progress_line(metrics, steps_, seconds_left, outliers);
  // A line with an evaluation or a skipped step is worth keeping on the screen.
  const bool stays = !style_.rewrite || !metrics.more.empty() || metrics.skipped;
  if (stays) return note(line);
  put(line);
}

void Progress::note(const std::string& text) {
  const std::string below = shown_;
  if (!shown_.empty()) put("");
  std::fprintf(stream_, "%s\n", text.c_str());
  shown_.clear();
  if (!below.empty()) put(below);
  std::fflush(stream_);
}

// Blanks out what the line before had more: no escape sequence where colour is not wanted.
void Progress::put(const std::string& text) {
  const size_t surplus = shown_.size() > text.size() ? shown_.size() - text.size() : 0;
  const char* bold = style_.color && !text.empty() ? "\x1b[1m" : "";
  const char* plain = style_.color && !text.empty() ? "\x1b[0m" : "";
  const std::string padding(surplus, ' ');
  const size_t head = std::min(text.find("  "), text.size());
  std::fprintf(stream_, "\r%s%s%s%s%s\r", bold, text.substr(0, head).c_str(), plain,
               text.substr(head).c_str(), padding.c_str());
  std::fflush(stream_);
  shown_ = text;
}

void Progress::finish() {
  if (!shown_.empty()) std::fputc('\n', stream_);
  shown_.clear();
  std::fflush(stream_);
}

}  // namespace sluice
