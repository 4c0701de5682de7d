// How a verification is shown.
#include <fmt/format.h>

#include <cmath>

#include "trainer/verify/verification.h"

namespace sluice {

namespace {

// Errors are not negative, but a NaN may have a sign.
std::string text_of(const char* format, double error) {
  return fmt::format(fmt::runtime(format), std::fabs(error));
}

// JSON has no number for what is not finite.
nlohmann::json number(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(text_of("{}", value));
}

const Difference* find(const LayoutCheck& check, const char* quantity) {
  for (const Difference& difference : check.differences) {
    if (difference.quantity == quantity) return &difference;
  }
  return nullptr;
}

std::string cell(const Difference* difference) {
  if (difference == nullptr) return "-";
  if (difference->tolerance == 0) return difference->holds() ? "equal" : "differ";
  return text_of("{:.1e}", difference->error);
}

std::string dtype_name(const LayoutCheck& check) {
  return std::string(name_of(check.dtype)) + (check.device == Device::Kind::cuda ? " gpu" : "");
}

std::string layout_name(const LayoutCheck& check) {
  return fmt::format("dp {} ep {} cp {}", check.mesh.dp, check.mesh.ep, check.mesh.cp);
}

}  // namespace

nlohmann::json to_json(const Verification& verification) {
  nlohmann::json kinds = nlohmann::json::array();
  for (const KindCheck& kind : verification.kinds) {
    kinds.push_back({{"kind", kind.kind},
                     {"parameters", kind.parameters},
                     {"error", number(kind.error)},
                     {"parameter", kind.parameter},
                     {"tolerance", verification.gradient_tolerance},
                     {"holds", kind.error <= verification.gradient_tolerance}});
  }
  nlohmann::json layouts = nlohmann::json::array();
  for (const LayoutCheck& check : verification.layouts) {
    nlohmann::json layout = {
        {"mesh", {{"dp", check.mesh.dp}, {"ep", check.mesh.ep}, {"cp", check.mesh.cp}}}};
    if (!check.skipped.empty()) {
      layout["skipped"] = check.skipped;
      layouts.push_back(layout);
      continue;
    }
    layout["zero"] = check.zero;
    layout["dtype"] = name_of(check.dtype);
    layout["device"] = check.device == Device::Kind::cuda ? "cuda" : "cpu";
    layout["holds"] = check.holds();
    for (const Difference& difference : check.differences) {
      layout["quantities"][difference.quantity] = {{"error", number(difference.error)},
                                                   {"tolerance", difference.tolerance},
                                                   {"where", difference.where},
                                                   {"holds", difference.holds()}};
    }
    layouts.push_back(layout);
  }
  return {{"holds", verification.holds()},
          {"stack", verification.stack},
          {"gradient_check", kinds},
          {"layouts", layouts},
          {"seconds", verification.seconds}};
}

std::string describe_kinds(const Verification& verification) {
  std::string text = fmt::format("reduced model {}: gradients against finite differences, f64\n",
                                 verification.stack);
  text += fmt::format("{:<14}{:>11}  {:<9}{}\n", "kind", "parameters", "error", "largest in");
  for (const KindCheck& kind : verification.kinds) {
    text += fmt::format("{:<14}{:>11}  {:<9}{}{}\n", kind.kind, kind.parameters,
                        text_of("{:.1e}", kind.error), kind.parameter,
                        kind.error <= verification.gradient_tolerance ? "" : "  FAILED");
  }
  return text;
}

std::string layout_table_head() {
  return fmt::format(
      "\nlayouts against one rank, largest relative difference\n"
      "{:<20}{:<6}{:<9}{:<10}{:<11}{:<12}{:<9}{:<9}{}\n",
      "layout", "zero", "dtype", "loss", "gradients", "parameters", "choices", "replicas",
      "largest in");
}

std::string describe_layout(const LayoutCheck& check) {
  if (!check.skipped.empty())
    return fmt::format("{:<20}skipped: {}\n", layout_name(check), check.skipped);
  // The parameter with the largest difference, and everything that does not hold.
  std::string worst;
  for (const char* quantity : {"gradients", "parameters"}) {
    const Difference* difference = find(check, quantity);
    if (difference != nullptr && worst.empty()) worst = difference->where;
  }
  std::string text =
      fmt::format("{:<20}{:<6}{:<9}{:<10}{:<11}{:<12}{:<9}{:<9}{}\n", layout_name(check),
                  check.zero, dtype_name(check), cell(find(check, "loss")),
                  cell(find(check, "gradients")), cell(find(check, "parameters")),
                  cell(find(check, "choices")), cell(find(check, "replicas")), worst);
  for (const Difference& difference : check.differences) {
    if (difference.holds()) continue;
    text +=
        fmt::format("    FAILED: {} {} (at most {:.0e}) {}\n", difference.quantity,
                    text_of("{:.3g}", difference.error), difference.tolerance, difference.where);
  }
  return text;
}

}  // namespace sluice
