#include "tests/bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kernels/core/device_name.h"

namespace sluice::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kSteady = 0.03;  // share by which readings of a ceiling may differ

double per_second(double amount, const Timing& timing) {
  return amount / (1e-3 * timing.median_ms);
}

// One rate of the passes that were timed: of what they move, or of what they compute.
struct Rates {
  double forward = 0, backward = 0, whole = 0;  // a second; 0: not timed
  double ceiling = 0;                           // 0: not measured
};

Rates rates_of(const Result& result, double Cost::*amount, double ceiling) {
  Rates rates{.whole = per_second(result.both().*amount, result.whole()), .ceiling = ceiling};
  if (!result.fwdbwd) return rates;
  rates.forward = per_second(result.forward.*amount, *result.fwd);
  if (result.bwd) rates.backward = per_second(result.backward.*amount, *result.bwd);
  return rates;
}
Rates byte_rates(const Result& result) {
  return rates_of(result, &Cost::bytes, result.ceilings.copy_bytes_per_s);
}
Rates flop_rates(const Result& result) {
  return rates_of(result, &Cost::flops, result.ceilings.gemm_flops_per_s);
}

void add_timing(Json& line, const std::string& pass, const std::optional<Timing>& timing) {
  if (!timing) return;
  line[pass + "_ms"] = timing->median_ms;
  line[pass + "_p10_ms"] = timing->p10_ms;
  line[pass + "_p90_ms"] = timing->p90_ms;
}

// "tb_s", "copy_tb_s", "of_copy", "fwd_of_copy", "bwd_of_copy", and so for "tflops" and "gemm".
void add_rates(Json& line, const std::string& unit, const std::string& ceiling,
               const Rates& rates) {
  if (rates.whole == 0) return;
  line[unit] = rates.whole * 1e-12;
  if (rates.ceiling == 0) return;
  line[ceiling + "_" + unit] = rates.ceiling * 1e-12;
  line["of_" + ceiling] = rates.whole / rates.ceiling;
  if (rates.forward > 0) line["fwd_of_" + ceiling] = rates.forward / rates.ceiling;
  if (rates.backward > 0) line["bwd_of_" + ceiling] = rates.backward / rates.ceiling;
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

std::string milliseconds(const std::optional<Timing>& timing) {
  return timing ? fmt::format("{:.3f}", timing->median_ms) : "-";
}

std::string rate(const Rates& rates, double unit) {
  return rates.whole > 0 ? fmt::format("{:.1f}", rates.whole / unit) : "-";
}

std::string share(const Rates& rates) {
  if (rates.whole == 0 || rates.ceiling == 0) return "-";
  return fmt::format("{:.0f}%", 100 * rates.whole / rates.ceiling);
}

// Forward, backward, both.
std::string shares(const Rates& rates) {
  if (rates.whole == 0 || rates.ceiling == 0) return "-";
  const auto percent = [&](double x) { return fmt::format("{:.0f}", 100 * x / rates.ceiling); };
  const std::string whole = percent(rates.whole);
  if (rates.forward == 0) return whole;
  return fmt::format("{} {} {}", percent(rates.forward),
                     rates.backward > 0 ? percent(rates.backward) : "-", whole);
}

std::string updates(const Result& result) {
  if (result.forward.updates == 0) return "-";
  const auto giga = [&](const Timing& timing) {
    return fmt::format("{:.2f}", per_second(result.forward.updates, timing) * 1e-9);
  };
  return giga(*result.fwd) + (result.bwd ? "/" + giga(*result.bwd) : "");
}

std::string shape_of(const Result& result) {
  std::string shape = result.part;
  for (const Letter& letter : result.shape) {
    shape += fmt::format("{}{} {}", shape.empty() ? "" : ", ", letter.name, letter.size);
  }
  return shape;
}

}  // namespace

Machine machine_of(const Target& target, int threads) {
  return {.threads = threads,
          .gpu = target.device.is_cuda() ? device_name(target.device) : "",
          .dtype = target.dtype};
}

void add_machine(Json& line, const Machine& machine) {
  if (machine.gpu.empty()) {
    line["threads"] = machine.threads;
    return;
  }
  line["device"] = machine.gpu;
  line["dtype"] = name_of(machine.dtype);
}

std::string json_line(const Result& result, const Machine& machine) {
  Json line{{"op", result.op}};
  if (!result.part.empty()) line["part"] = result.part;
  for (const Letter& letter : result.shape) line[letter.name] = letter.size;
  add_machine(line, machine);
  add_timing(line, "fwd", result.fwd);
  add_timing(line, "bwd", result.bwd);
  add_timing(line, "fwdbwd", result.fwdbwd);
  if (result.wall_ms) line["wall_ms"] = *result.wall_ms;
  const Timing& whole = result.whole();
  line["spread"] = whole.spread();
  add_rates(line, "tb_s", "copy", byte_rates(result));
  add_rates(line, "tflops", "gemm", flop_rates(result));
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

std::string json_ceilings(const Ceilings& first, const Ceilings& last, const Machine& machine) {
  Json line{{"op", "ceilings"}};
  add_machine(line, machine);
  if (machine.gpu.empty()) line["clones"] = clone_level();
  line["first"] = ceilings_object(first);
  line["last"] = ceilings_object(last);
  return line.dump() + "\n";
}

std::string table_head(const Machine& machine) {
  if (machine.gpu.empty()) {
    return fmt::format("{:<10} {:<44} {:>9} {:>9} {:>9} {:>7} {:>6} {:>8} {:>6} {:>11} {:>7}\n",
                       "op", "shape", "fwd ms", "bwd ms", "both ms", "GB/s", "copy", "GFLOP/s",
                       "gemm", "G updates/s", "peer");
  }
  return fmt::format("{:<10} {:<46} {:>9} {:>9} {:>9} {:>9} {:>7} {:>10} {:>8} {:>10}\n", "op",
                     "shape", "fwd ms", "bwd ms", "both ms", "wall ms", "GB/s", "% of copy",
                     "TFLOP/s", "% of gemm");
}

std::string table_row(const Result& result, const Machine& machine) {
  const Rates bytes = byte_rates(result), flops = flop_rates(result);
  if (machine.gpu.empty()) {
    return fmt::format("{:<10} {:<44} {:>9} {:>9} {:>9} {:>7} {:>6} {:>8} {:>6} {:>11} {:>7}\n",
                       result.op, shape_of(result), milliseconds(result.fwd),
                       milliseconds(result.bwd), milliseconds(result.fwdbwd), rate(bytes, 1e9),
                       share(bytes), rate(flops, 1e9), share(flops), updates(result),
                       result.peer ? fmt::format("{:.0f}%", 100 * result.peer->median_ms /
                                                                result.whole().median_ms)
                                   : "-");
  }
  return fmt::format("{:<10} {:<46} {:>9} {:>9} {:>9} {:>9} {:>7} {:>10} {:>8} {:>10}\n", result.op,
                     shape_of(result), milliseconds(result.fwd), milliseconds(result.bwd),
                     milliseconds(result.fwdbwd),
                     result.wall_ms ? fmt::format("{:.3f}", *result.wall_ms) : "-",
                     rate(bytes, 1e9), shares(bytes), rate(flops, 1e12), shares(flops));
}

std::string table_ceilings(const Ceilings& first, const Ceilings& last, const Machine& machine) {
  if (machine.gpu.empty()) {
    return fmt::format(
        "{} threads, clones for {}; ceilings, first and last: copy {:.1f} and {:.1f} GB/s, "
        "OpenBLAS sgemm {:.1f} and {:.1f} GFLOP/s\n",
        machine.threads, clone_level(), first.copy_bytes_per_s * 1e-9, last.copy_bytes_per_s * 1e-9,
        first.gemm_flops_per_s * 1e-9, last.gemm_flops_per_s * 1e-9);
  }
  return fmt::format(
      "{}, {}; ceilings, first and last: copy {:.1f} and {:.1f} GB/s, gemm {:.1f} and {:.1f} "
      "TFLOP/s\n",
      machine.gpu, name_of(machine.dtype), first.copy_bytes_per_s * 1e-9,
      last.copy_bytes_per_s * 1e-9, first.gemm_flops_per_s * 1e-12, last.gemm_flops_per_s * 1e-12);
}

std::string unsteady(const Ceilings& first, const Ceilings& last) {
  const auto moved = [](double a, double b) {
    return std::max(a, b) > 0 ? std::abs(a - b) / std::max(a, b) : 0;
  };
  const double copy = moved(first.copy_bytes_per_s, last.copy_bytes_per_s);
  const double gemm = moved(first.gemm_flops_per_s, last.gemm_flops_per_s);
  if (std::max(copy, gemm) <= kSteady) return "";
  return fmt::format(
      "the ceilings moved during the run, copy by {:.1f} %, gemm by {:.1f} %: "
      "discard it",
      100 * copy, 100 * gemm);
}

}  // namespace sluice::bench
