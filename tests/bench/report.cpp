#include "tests/bench/report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace sluice::bench {
namespace {

using Json = nlohmann::ordered_json;

double per_second(double amount, const Timing& timing) {
  return amount / (1e-3 * timing.median_ms);
}

std::string milliseconds(const std::optional<Timing>& timing) {
  return timing ? fmt::format("{:.3f}", timing->median_ms) : "-";
}

std::string rate(double amount, double unit, const Timing& timing, int digits = 1) {
  return amount > 0 ? fmt::format("{:.{}f}", per_second(amount, timing) / unit, digits) : "-";
}

std::string share(double amount, double ceiling, const Timing& timing) {
  return amount > 0 ? fmt::format("{:.0f}%", 100 * per_second(amount, timing) / ceiling) : "-";
}

Json ceilings_object(const Ceilings& ceilings) {
  return {{"tb_s", ceilings.copy_bytes_per_s * 1e-12},
          {"tflops", ceilings.gemm_flops_per_s * 1e-12}};
}

// Of x86-64, for which the operators' loops run; "none" where there are no such clones.
const char* clone_level() {
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
  return "x86-64";
#else
  return "none";
#endif
}

}  // namespace

std::string json_line(const Result& result, int num_threads) {
  Json line{{"op", result.op}};
  for (const Letter& letter : result.shape) line[letter.name] = letter.size;
  line["threads"] = num_threads;
  line["fwd_ms"] = result.fwd->median_ms;
  if (result.bwd) line["bwd_ms"] = result.bwd->median_ms;
  if (result.fwdbwd) line["fwdbwd_ms"] = result.fwdbwd->median_ms;
  const Timing& whole = result.whole();
  line["spread"] = whole.spread;
  if (result.both.bytes > 0) {
    const double bytes_per_s = per_second(result.both.bytes, whole);
    line["tb_s"] = bytes_per_s * 1e-12;
    line["copy_tb_s"] = result.ceilings.copy_bytes_per_s * 1e-12;
    line["of_copy"] = bytes_per_s / result.ceilings.copy_bytes_per_s;
  }
  if (result.both.flops > 0) {
    const double flops_per_s = per_second(result.both.flops, whole);
    line["tflops"] = flops_per_s * 1e-12;
    line["gemm_tflops"] = result.ceilings.gemm_flops_per_s * 1e-12;
    line["of_gemm"] = flops_per_s / result.ceilings.gemm_flops_per_s;
  }
  if (result.forward.updates > 0) {
    line["gupdates_s"] = per_second(result.forward.updates, *result.fwd) * 1e-9;
    if (result.bwd) {
      line["bwd_gupdates_s"] = per_second(result.forward.updates, *result.bwd) * 1e-9;
    }
  }
  if (result.peer) {
    line["peer_ms"] = result.peer->median_ms;
    line["of_peer"] = result.peer->median_ms / whole.median_ms;
  }
  return line.dump() + "\n";
}

std::string json_ceilings(const Ceilings& first, const Ceilings& last, int num_threads) {
  const Json line{{"op", "ceilings"},
                  {"threads", num_threads},
                  {"clones", clone_level()},
                  {"first", ceilings_object(first)},
                  {"last", ceilings_object(last)}};
  return line.dump() + "\n";
}

std::string table_head() {
  return fmt::format("{:<10} {:<44} {:>9} {:>9} {:>9} {:>7} {:>6} {:>8} {:>6} {:>11} {:>7}\n", "op",
                     "shape", "fwd ms", "bwd ms", "both ms", "GB/s", "copy", "GFLOP/s", "gemm",
                     "G updates/s", "peer");
}

std::string table_row(const Result& result) {
  std::string shape;
  for (const Letter& letter : result.shape) {
    shape += fmt::format("{}{} {}", shape.empty() ? "" : ", ", letter.name, letter.size);
  }
  const Timing& whole = result.whole();
  std::string updates = rate(result.forward.updates, 1e9, *result.fwd, 2);
  if (result.forward.updates > 0 && result.bwd) {
    updates += "/" + rate(result.forward.updates, 1e9, *result.bwd, 2);
  }
  return fmt::format(
      "{:<10} {:<44} {:>9} {:>9} {:>9} {:>7} {:>6} {:>8} {:>6} {:>11} {:>7}\n", result.op, shape,
      milliseconds(result.fwd), milliseconds(result.bwd), milliseconds(result.fwdbwd),
      rate(result.both.bytes, 1e9, whole),
      share(result.both.bytes, result.ceilings.copy_bytes_per_s, whole),
      rate(result.both.flops, 1e9, whole),
      share(result.both.flops, result.ceilings.gemm_flops_per_s, whole), updates,
      result.peer ? fmt::format("{:.0f}%", 100 * result.peer->median_ms / whole.median_ms) : "-");
}

std::string table_ceilings(const Ceilings& first, const Ceilings& last, int num_threads) {
  return fmt::format(
      "{} threads, clones for {}; ceilings, first and last: copy {:.1f} and {:.1f} GB/s, "
      "OpenBLAS sgemm {:.1f} and {:.1f} GFLOP/s\n",
      num_threads, clone_level(), first.copy_bytes_per_s * 1e-9, last.copy_bytes_per_s * 1e-9,
      first.gemm_flops_per_s * 1e-9, last.gemm_flops_per_s * 1e-9);
}

}  // namespace sluice::bench
