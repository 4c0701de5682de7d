#include "trainer/scalars.h"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>

namespace sluice {
namespace {

// Whole values up to here are exact in a double.
constexpr double kExactLimit = 9007199254740992.0;

struct Unit {
  std::string_view name;
  int64_t factor;
};
constexpr std::array<Unit, 8> kUnits = {{{"Ki", int64_t{1} << 10},
                                         {"Mi", int64_t{1} << 20},
                                         {"Gi", int64_t{1} << 30},
                                         {"Ti", int64_t{1} << 40},
                                         {"k", 1000},
                                         {"M", 1000000},
                                         {"G", 1000000000},
                                         {"T", 1000000000000}}};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// [+-] digits [. digits] [e [+-] digits], without leading zeros.
bool is_decimal(std::string_view text) {
  size_t i = 0;
  const auto digits = [&] {
    const size_t begin = i;
    while (i < text.size() && is_digit(text[i])) ++i;
    return i - begin;
  };
  if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
  const size_t whole_begin = i;
  const size_t whole = digits();
  if (whole > 1 && text[whole_begin] == '0') return false;
  size_t fraction = 0;
  if (i < text.size() && text[i] == '.') ++i, fraction = digits();
  if (whole + fraction == 0) return false;
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
    if (digits() == 0) return false;
  }
  return i == text.size();
}

std::string_view without_plus(std::string_view text) {
  return !text.empty() && text[0] == '+' ? text.substr(1) : text;
}

// Splits a trailing unit off; its factor, or 1.
int64_t take_unit(std::string_view& text) {
  std::string_view rest = text;
  if (!rest.empty() && rest.back() == 'B') rest.remove_suffix(1);
  for (const Unit& unit : kUnits) {
    if (!rest.ends_with(unit.name)) continue;
    text = rest.substr(0, rest.size() - unit.name.size());
    return unit.factor;
  }
  return 1;
}

std::string shortest(double value) {
  std::array<char, 40> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
  return std::string(buffer.data(), end);
}

// The same without an exponent; "" where that is long.
std::string shortest_fixed(double value) {
  std::array<char, 24> buffer{};
  const auto result =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed);
  return result.ec == std::errc() ? std::string(buffer.data(), result.ptr) : "";
}

}  // namespace

std::optional<int64_t> parse_integer(std::string_view text) {
  const int64_t factor = take_unit(text);
  if (!is_decimal(text)) return std::nullopt;
  text = without_plus(text);
  int64_t whole = 0;
  const char* end = text.data() + text.size();
  const auto exact = std::from_chars(text.data(), end, whole);
  if (exact.ec == std::errc() && exact.ptr == end) {
    int64_t product = 0;
    if (__builtin_mul_overflow(whole, factor, &product)) return std::nullopt;
    return product;
  }
  double value = 0;
  const auto real = std::from_chars(text.data(), end, value);
  if (real.ec != std::errc() || real.ptr != end) return std::nullopt;
  value *= double(factor);
  if (std::fabs(value) > kExactLimit || value != std::trunc(value)) return std::nullopt;
  return int64_t(value);
}

std::optional<double> parse_number(std::string_view text) {
  if (text == ".inf" || text == "+.inf") return std::numeric_limits<double>::infinity();
  if (text == "-.inf") return -std::numeric_limits<double>::infinity();
  if (!is_decimal(text)) return std::nullopt;
  text = without_plus(text);
  double value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc()) return std::nullopt;
  return value;
}

std::string format_number(double value) {
  if (std::isnan(value)) return ".nan";
  if (std::isinf(value)) return value > 0 ? ".inf" : "-.inf";
  std::string text = shortest(value);
  // YAML 1.1 readers take 1e-08 for a string: they want the point.
  const size_t exponent = text.find('e');
  if (exponent != std::string::npos && text.find('.') == std::string::npos) {
    text.insert(exponent, ".0");
  }
  const std::string fixed = shortest_fixed(value);
  return !fixed.empty() && fixed.size() < text.size() ? fixed : text;
}

std::string format_json_number(double value) {
  return std::isfinite(value) ? shortest(value) : "null";
}

}  // namespace sluice
