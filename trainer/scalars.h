// Numbers as configurations and logs write them, converted by sluice and not by a YAML library.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace sluice {

// Decimal integers; exponents and fractions whose value is whole (3e2, 1.5e9); units k, M, G, T
// (powers of 1000, optionally followed by B) and Ki, Mi, Gi, Ti (powers of 1024, likewise). Leading
// zeros (010) are refused: YAML 1.1 reads them as octal.
std::optional<int64_t> parse_integer(std::string_view text);

// Decimal numbers, .inf and -.inf. No NaN, no hexadecimal, no leading zeros.
std::optional<double> parse_number(std::string_view text);

// The shortest text that reads back as the same value. Not finite: .inf, -.inf, .nan.
std::string format_number(double value);

// Shortest round trip as JSON; null where the value is not finite.
std::string format_json_number(double value);

}  // namespace sluice
