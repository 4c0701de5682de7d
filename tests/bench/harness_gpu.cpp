#include <algorithm>
#include <chrono>

#include "tests/bench/cases.h"
#include "tests/bench/gpu.h"
#include "tests/bench/harness.h"

namespace sluice::bench {
namespace {

constexpr double kEnoughMs = 100;    // of repetitions of one pass ...
constexpr int64_t kEnoughRuns = 20;  // ... but at least so many,
constexpr double kMostMs = 1000;     // unless that takes longer than this,
constexpr int64_t kFewestRuns = 5;   // and then still so many
constexpr int64_t kMostRuns = 300;
// A cool device runs products faster than it can go on doing: its power limit takes time to bite.
// Both readings of a product's ceiling are the last of so much of it.
constexpr double kWarmUpMs = 700;
// Runs between two waits. While the first of them waits behind a copy of the ceiling, the host gets
// ahead with the rest, so that marks do not measure the starting of kernels.
constexpr int64_t kBatch = 20;

using Clock = std::chrono::steady_clock;
using Pass = std::function<void(Workload&)>;

int64_t runs_for(double one_ms) {
  const int64_t wanted = std::clamp(int64_t(kEnoughMs / one_ms), kEnoughRuns, kMostRuns);
  return std::clamp(int64_t(kMostMs / one_ms), kFewestRuns, wanted);
}

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

class GpuHarness final : public Harness {
 public:
  explicit GpuHarness(const Target& target)
      : target_(target),
        // A pass leaves its last 50 MB or so in the cache: with copies of eight times that nothing
        // of a copy's inputs is there when its turn comes.
        rotation_bytes_(8 * gpu_cache_bytes(target.device)),
        copy_case_(copy_ceiling(target)),
        gemm_case_(gemm_ceiling(target)),
        copy_(make_copies(copy_case_, 0)),
        saved_("saved", 0, target.device),
        marks_(kBatch + 1) {}

  Ceilings measure_ceilings() override {
    ceilings_.copy_bytes_per_s = rate("copy", copy_case_, copy_case_.forward.bytes);
    const Clock::time_point start = Clock::now();
    do {
      ceilings_.gemm_flops_per_s = rate("gemm", gemm_case_, gemm_case_.forward.flops);
    } while (ceilings_.gemm_flops_per_s > 0 && ms_since(start) < kWarmUpMs);
    return ceilings_;
  }

  Result measure(const std::string& op, const Case& c) override {
    Copies copies = make_copies(c, rotation_bytes_);
    Arena scratch("scratch", scratch_bytes(*copies[0], target_, c.passes), target_.device);
    const Context ctx = context(scratch);
    for (const auto& copy : copies) run_passes(*copy, ctx, c.passes);  // warm, ready for backward
    target_.stream.sync();

    Result result = untimed(op, c);
    const Pass forward = [&](Workload& w) { w.forward(ctx); };
    const Pass backward = [&](Workload& w) { w.backward(ctx); };
    const Pass both = [&](Workload& w) { w.forward_backward(ctx); };
    result.fwd = time(forward, copies);
    if (c.passes == Passes::forward_and_backward) result.bwd = time(backward, copies);
    if (c.passes != Passes::forward) {
      result.fwdbwd = time(both, copies);
      result.wall_ms = wall_ms(both, copies, runs_for(result.fwdbwd->median_ms));
    }
    result.ceilings = ceilings_;
    return result;
  }

 private:
  Context context(Arena& scratch) {
    return {.device = target_.device,
            .stream = target_.stream,
            .saved = &saved_,
            .scratch = &scratch,
            .rng = {}};
  }

  // 0 where the operator cannot run: shares of it are then left out.
  double rate(const std::string& op, const Case& c, double amount) {
    try {
      return amount / (1e-3 * measure(op, c).fwd->median_ms);
    } catch (const Error&) {
      target_.stream.sync();  // throws if it was the device that broke
      return 0;
    }
  }

  // Repetitions over the copies in turn, started without waiting, between marks.
  void run_batch(const Pass& pass, const Copies& copies, int64_t runs, std::vector<double>& ms) {
    Arena scratch("scratch", 0, target_.device);
    copy_[0]->forward(context(scratch));
    marks_.record(0, target_.stream);
    for (int64_t run = 0; run < runs; ++run) {
      pass(*copies[(ms.size() + size_t(run)) % copies.size()]);
      marks_.record(run + 1, target_.stream);
    }
    target_.stream.sync();
    for (int64_t run = 0; run < runs; ++run) ms.push_back(marks_.ms_after(run));
  }

  Timing time(const Pass& pass, const Copies& copies) {
    std::vector<double> trial, ms;
    run_batch(pass, copies, 3, trial);
    const int64_t runs = runs_for(timing_of(trial).median_ms);
    while (int64_t(ms.size()) < runs) {
      run_batch(pass, copies, std::min(kBatch, runs - int64_t(ms.size())), ms);
    }
    return timing_of(std::move(ms));
  }

  // What a user waits for: the host's clock over many repetitions.
  double wall_ms(const Pass& pass, const Copies& copies, int64_t runs) {
    const Clock::time_point start = Clock::now();
    for (int64_t run = 0; run < runs; ++run) pass(*copies[size_t(run) % copies.size()]);
    target_.stream.sync();
    return ms_since(start) / double(runs);
  }

  Target target_;
  size_t rotation_bytes_;
  Case copy_case_, gemm_case_;
  Copies copy_;  // one, which is large
  Arena saved_;  // empty: workloads keep what their backward needs
  Marks marks_;
  Ceilings ceilings_;
};

}  // namespace

std::unique_ptr<Harness> make_gpu_harness(const Target& target) {
  return std::make_unique<GpuHarness>(target);
}

}  // namespace sluice::bench
