#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "tests/bench/cases.h"
#include "tests/bench/harness.h"

namespace sluice::bench {
namespace {

constexpr double kEnoughSeconds = 0.3;  // of repetitions ...
constexpr int64_t kEnoughRuns = 5;      // ... but at least so many,
constexpr double kMostSeconds = 1.5;    // unless that takes longer than this
constexpr int64_t kMostRuns = 300;
// Virtual machines report the host's whole cache, of which a few cores never fill so much.
constexpr size_t kMostRotation = size_t{192} << 20;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Twice the last-level cache, within reason.
size_t rotation_bytes() {
  const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  const size_t one = cache > 0 ? size_t(cache) : size_t{32} << 20;
  return std::min(2 * one, kMostRotation);
}

// One pass over some workload's copies, one after the other.
struct Turn {
  std::function<void(Workload&)> pass;
  Copies* copies = nullptr;
  std::optional<Timing>* timing = nullptr;
  std::vector<double> ms = {};

  // Returns the seconds it took.
  double take(int64_t run) {
    Workload& workload = *(*copies)[size_t(run) % copies->size()];
    const Clock::time_point start = Clock::now();
    pass(workload);
    const double seconds = seconds_since(start);
    ms.push_back(1e3 * seconds);
    return seconds;
  }
};

void take_turns(std::vector<Turn> turns) {
  double total = 0;
  for (int64_t round = 0; round < kMostRuns; ++round) {
    for (size_t i = 0; i < turns.size(); ++i) {
      total += turns[i].take(round * int64_t(turns.size()) + int64_t(i));
    }
    const double seconds = total / double(turns.size());
    if (seconds >= kMostSeconds || (round + 1 >= kEnoughRuns && seconds >= kEnoughSeconds)) break;
  }
  for (Turn& turn : turns) *turn.timing = timing_of(std::move(turn.ms));
}

Ceilings ceilings_of(const Case& copy, const std::optional<Timing>& copy_time, const Case& gemm,
                     const std::optional<Timing>& gemm_time) {
  Ceilings ceilings;
  if (copy_time) ceilings.copy_bytes_per_s = copy.forward.bytes / (1e-3 * copy_time->median_ms);
  if (gemm_time) ceilings.gemm_flops_per_s = gemm.forward.flops / (1e-3 * gemm_time->median_ms);
  return ceilings;
}

class CpuHarness final : public Harness {
 public:
  CpuHarness()
      : copy_case_(copy_ceiling({})),
        gemm_case_(gemm_ceiling({})),
        copy_(make_copies(copy_case_, rotation_bytes())),
        gemm_(make_copies(gemm_case_, rotation_bytes())) {}

  Ceilings measure_ceilings() override {
    std::optional<Timing> copy, gemm;
    const auto forward = [](Workload& w) { w.peer(); };
    for (const auto& w : copy_) forward(*w);
    for (const auto& w : gemm_) forward(*w);
    take_turns({{.pass = forward, .copies = &copy_, .timing = &copy},
                {.pass = forward, .copies = &gemm_, .timing = &gemm}});
    return ceilings_of(copy_case_, copy, gemm_case_, gemm);
  }

  Result measure(const std::string& op, const Case& c) override {
    Copies copies = make_copies(c, rotation_bytes());
    Arena saved("saved", 0, kCpu);
    Arena scratch("scratch", scratch_bytes(*copies[0], {}, c.passes), kCpu);
    const Context ctx{
        .device = kCpu, .stream = {}, .saved = &saved, .scratch = &scratch, .rng = {}};
    for (const auto& copy : copies) run_passes(*copy, ctx, c.passes);  // warm, ready for backward

    Result result = untimed(op, c);
    std::optional<Timing> copy_time, gemm_time;
    const auto peer = [](Workload& w) { w.peer(); };
    std::vector<Turn> turns = {
        {.pass = [&](Workload& w) { w.forward(ctx); }, .copies = &copies, .timing = &result.fwd}};
    const auto add = [&](bool wanted, Turn turn) {
      if (wanted) turns.push_back(std::move(turn));
    };
    add(c.passes == Passes::forward_and_backward,
        {.pass = [&](Workload& w) { w.backward(ctx); }, .copies = &copies, .timing = &result.bwd});
    add(c.passes != Passes::forward, {.pass = [&](Workload& w) { w.forward_backward(ctx); },
                                      .copies = &copies,
                                      .timing = &result.fwdbwd});
    add(c.has_peer, {.pass = peer, .copies = &copies, .timing = &result.peer});
    add(result.both().bytes > 0, {.pass = peer, .copies = &copy_, .timing = &copy_time});
    add(result.both().flops > 0, {.pass = peer, .copies = &gemm_, .timing = &gemm_time});
    take_turns(std::move(turns));
    result.ceilings = ceilings_of(copy_case_, copy_time, gemm_case_, gemm_time);
    return result;
  }

 private:
  Case copy_case_, gemm_case_;
  Copies copy_, gemm_;
};

}  // namespace

std::unique_ptr<Harness> make_cpu_harness() { return std::make_unique<CpuHarness>(); }

}  // namespace sluice::bench
