// One member list per configuration struct serves parsing, printing, the schema, overrides and the
// rejection of unknown keys. A struct declares
//
//   template <class V> void fields(V&& v) {
//     v(Field{.name = "head_dim", .help = "width of a head (P)", .min = 1}, head_dim);
//   }
//   void validate() const;   // optional: what ranges cannot say; throws FieldError
//
// Members are bool, int64_t, double, std::string, enums with enum_names(), std::optional,
// std::vector and std::array of these, and other structs with fields(). A default outside its own
// range makes the key required. fields() runs while values are read, in the order of the list, so
// that a list may depend on members visited before. v(field, list, prototype) starts every item of
// a list as a copy of the prototype.
#pragma once

#include <limits>
#include <string>
#include <utility>

#include "kernels/core/error.h"

namespace sluice {

struct Field {
  const char* name = "";
  const char* help = "";
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  const char* unset =
      "";  // the word for an empty optional (auto, none); without one it is left out
};

// Thrown by validate(): names the member at fault ("head_dim", "rope.theta"), so that the reader of
// the configuration can point at the line that it came from.
class FieldError : public UsageError {
 public:
  FieldError(std::string field, const std::string& message)
      : UsageError(field + ": " + message), field_(std::move(field)), reason_(message) {}
  const std::string& field() const { return field_; }
  const std::string& reason() const { return reason_; }

 private:
  std::string field_;
  std::string reason_;
};

}  // namespace sluice
