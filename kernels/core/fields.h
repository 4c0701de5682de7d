// One member list per configuration struct serves parsing, printing, the schema, overrides and the
// rejection of unknown keys. A struct declares
//
//   template <class V> void fields(V&& v) {
//     v(Field{.name = "head_dim", .help = "width of a head (P)", .min = 1}, head_dim);
//   }
//
// Members are bool, int64_t, double, std::string, enums with enum_names(), std::optional and
// std::vector of these, and other structs with fields().
#pragma once

#include <limits>

namespace sluice {

struct Field {
  const char* name = "";
  const char* help = "";
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
};

}  // namespace sluice
