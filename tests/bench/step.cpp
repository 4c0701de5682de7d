#include "tests/bench/step.h"

#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "data/batch.h"
#include "parallel/self_communicator.h"
#include "trainer/step_engine.h"

namespace sluice::bench {
namespace {

constexpr int kRuns = 5;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Batch random_batch(int64_t B, int64_t T, int64_t vocab) {
  Batch batch(0, B, T, {});
  for (int64_t b = 0; b < B; ++b) {
    Batch::Row row{.tokens = std::vector<int32_t>(T),
                   .targets = std::vector<int32_t>(T),
                   .doc_begin = std::vector<int32_t>(T, 0)};
    for (int64_t t = 0; t < T; ++t) {
      row.tokens[t] = int32_t(random_below({.seed = 1, .stream = uint64_t(b)}, t, vocab));
      if (t > 0) row.targets[t - 1] = row.tokens[t];
    }
    row.targets[T - 1] = -1;
    batch.set_row(b, row);
  }
  return batch;
}

// One rank's step with a single micro-batch.
class Step {
 public:
  Step(Config config, const StepCase& step) : self_(make_self_communicator()), mesh_(*self_, {}) {
    config.train.global_batch = config.train.micro_batch = step.B;
    config.train.seq_len = step.T;
    config.parallel = {};
    engine_ = std::make_unique<StepEngine>(config, mesh_);
    step_ = step;
  }

  void run() {
    Batch batch = random_batch(step_.B, step_.T, engine_->model().config().vocab_size);
    const int64_t targets = batch.num_targets();
    engine_->step({.lr = 1e-4, .targets = targets, .next_batch = [&] { return std::move(batch); }});
  }

  const StepEngine& engine() const { return *engine_; }

 private:
  std::unique_ptr<Communicator> self_;
  Mesh mesh_;
  std::unique_ptr<StepEngine> engine_;
  StepCase step_;
};

}  // namespace

std::vector<StepCase> step_cases(const Target& target) {
  if (target.device.is_cuda()) return {};
  return {{"mamba-130m", 1, 512}, {"mamba2-130m", 1, 512}, {"hybrid-130m", 1, 512}};
}

StepResult measure_step(const StepCase& step, const Ceilings& ceilings) {
  const Config config =
      load_config(std::string(SLUICE_SOURCE_DIR) + "/configs/" + step.config + ".yaml").config;
  StepResult result{.step = step, .timing = {}, .ceilings = ceilings};
  const Clock::time_point start = Clock::now();
  Step training(config, step);
  training.run();
  result.first_step_s = seconds_since(start);
  std::vector<double> ms;
  for (int run = 0; run < kRuns; ++run) {
    const Clock::time_point begin = Clock::now();
    training.run();
    ms.push_back(1e3 * seconds_since(begin));
  }
  result.timing = timing_of(std::move(ms));
  result.num_parameters = training.engine().store().num_elements();
  result.peak_gib = double(training.engine().memory().total()) / double(1 << 30);
  result.flops = training.engine().model().flops_per_token(step.T) * double(step.B * step.T);
  return result;
}

std::string json_line(const StepResult& result, int num_threads) {
  const nlohmann::ordered_json line{{"op", "step"},
                                    {"model", result.step.config},
                                    {"B", result.step.B},
                                    {"T", result.step.T},
                                    {"threads", num_threads},
                                    {"params", result.num_parameters},
                                    {"tok_s", result.tokens_per_s()},
                                    {"step_ms", result.timing.median_ms},
                                    {"spread", result.timing.spread()},
                                    {"peak_gib", result.peak_gib},
                                    {"mfu", result.mfu()},
                                    {"first_step_s", result.first_step_s}};
  return line.dump() + "\n";
}

std::string table_row(const StepResult& result) {
  return fmt::format(
      "{:<10} {:<16} B {}, T {}: {:.0f} ms, {:.0f} tokens/s, {:.0f}% of gemm, {:.2f} GiB, first "
      "step "
      "{:.1f} s\n",
      "step", result.step.config, result.step.B, result.step.T, result.timing.median_ms,
      result.tokens_per_s(), 100 * result.mfu(), result.peak_gib, result.first_step_s);
}

}  // namespace sluice::bench
