#include "tests/bench/step.h"

#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "data/batch.h"
#include "kernels/core/device_name.h"
#include "parallel/self_communicator.h"
#include "trainer/step_engine.h"

namespace sluice::bench {
namespace {

constexpr int kCpuRuns = 5;
// The first steps of a GPU load code, choose products' algorithms and record the step's graph.
constexpr int kGpuWarmUp = 3, kGpuRuns = 10;

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
  Step(Config config, const StepCase& step, const Target& target)
      : place_{.device = target.device, .stream = target.stream},
        self_(make_self_communicator(place_)),
        mesh_(*self_, {}) {
    config.train.global_batch = config.train.micro_batch = step.B;
    config.train.seq_len = step.T;
    config.parallel = {};
    engine_ = std::make_unique<StepEngine>(config, mesh_, target.dtype, place_);
    step_ = step;
  }

  // Seconds of one step. Its batch is there before, as a trainer has read it meanwhile.
  double run() {
    Batch batch = random_batch(step_.B, step_.T, engine_->model().config().vocab_size);
    const int64_t targets = batch.num_targets();
    const Clock::time_point start = Clock::now();
    const StepReport report = engine_->step(
        {.lr = 1e-4, .targets = targets, .next_batch = [&] { return std::move(batch); }});
    const double seconds = seconds_since(start);
    SLUICE_CHECK(report.finite, "the loss of a step on random tokens is not finite");
    return seconds;
  }

  const StepEngine& engine() const { return *engine_; }

 private:
  Place place_;
  std::unique_ptr<Communicator> self_;
  Mesh mesh_;
  std::unique_ptr<StepEngine> engine_;
  StepCase step_;
};

double peak_flops_per_s(const Target& target) {
  if (target.device.is_cpu() || target.dtype != DType::bf16) return 0;
  return published_peak_flops(device_name(target.device));
}

}  // namespace

StepResult measure_step(const StepCase& step, const std::string& configs, const Target& target,
                        const Ceilings& ceilings) {
  const Config config = load_config(configs + "/" + step.config + ".yaml").config;
  StepResult result{.step = step,
                    .timing = {},
                    .peak_flops_per_s = peak_flops_per_s(target),
                    .ceilings = ceilings};
  const Clock::time_point start = Clock::now();
  Step training(config, step, target);
  training.run();
  result.first_step_s = seconds_since(start);
  const bool on_gpu = target.device.is_cuda();
  for (int run = 1; run < (on_gpu ? kGpuWarmUp : 1); ++run) training.run();
  std::vector<double> ms;
  for (int run = 0; run < (on_gpu ? kGpuRuns : kCpuRuns); ++run) {
    ms.push_back(1e3 * training.run());
  }
  result.timing = timing_of(std::move(ms));
  result.num_parameters = training.engine().store().num_elements();
  result.peak_gib = double(training.engine().memory().total()) / double(1 << 30);
  result.flops = training.engine().model().flops_per_token(step.T) * double(step.B * step.T);
  return result;
}

std::string json_line(const StepResult& result, const Machine& machine) {
  nlohmann::ordered_json line{
      {"op", "step"}, {"model", result.step.config}, {"B", result.step.B}, {"T", result.step.T}};
  add_machine(line, machine);
  line["params"] = result.num_parameters;
  line["tok_s"] = result.tokens_per_s();
  line["step_ms"] = result.timing.median_ms;
  line["step_p10_ms"] = result.timing.p10_ms;
  line["step_p90_ms"] = result.timing.p90_ms;
  line["spread"] = result.timing.spread();
  line["peak_gib"] = result.peak_gib;
  const double gemm = result.ceilings.gemm_flops_per_s;
  const double peak = result.peak_flops_per_s > 0 ? result.peak_flops_per_s : gemm;
  line["mfu"] = result.flops_per_s() / peak;
  if (gemm > 0) line["of_gemm"] = result.flops_per_s() / gemm;
  line["first_step_s"] = result.first_step_s;
  return line.dump() + "\n";
}

std::string table_row(const StepResult& result) {
  const auto share = [&](double peak, const char* of) {
    return peak > 0 ? fmt::format(", {:.1f}% of {}", 100 * result.flops_per_s() / peak, of) : "";
  };
  return fmt::format(
      "{:<10} {:<16} B {}, T {}: {:.1f} ms, {:.0f} tokens/s{}{}, {:.2f} GiB, first step {:.1f} s\n",
      "step", result.step.config, result.step.B, result.step.T, result.timing.median_ms,
      result.tokens_per_s(), share(result.peak_flops_per_s, "peak"),
      share(result.ceilings.gemm_flops_per_s, "gemm"), result.peak_gib, result.first_step_s);
}

}  // namespace sluice::bench
