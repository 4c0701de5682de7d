// Fills configuration structs from a ConfigNode tree and writes them back, by their member lists
// (kernels/core/fields.h). Everything a user may get wrong is a UsageError that points at the
// place: unknown keys with the nearest valid one, wrong types, values out of range, missing keys.
//
// Extensions of a struct beside fields() and validate():
//   static constexpr const char* kShorthand = "path";   // a scalar in its place sets this member
// A type without fields() may instead have these free functions beside it:
//   void read_config(ConfigReader&, const ConfigNode&, const std::string& path, T&);
//   ConfigNode write_config(const T&, const OriginMap&, const std::string& path);
#pragma once

#include <array>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/core/fields.h"
#include "trainer/config_node.h"

namespace sluice {

using OriginMap = std::map<std::string, Location>;  // by path ("data.train[0].path"); given values

struct FieldProbe {
  template <class... Values>
  void operator()(const Field&, Values&&...) {}
};
template <class T>
concept ConfigSection = requires(T& section, FieldProbe probe) {
  section.fields(probe);
};
template <class T>
concept HasShorthand = requires {
  T::kShorthand;
};
template <class T>
concept HasValidate = requires(const T& section) {
  section.validate();
};

template <class T>
inline constexpr bool kIsOptional = false;
template <class T>
inline constexpr bool kIsOptional<std::optional<T>> = true;
template <class T>
inline constexpr bool kIsVector = false;
template <class T>
inline constexpr bool kIsVector<std::vector<T>> = true;
template <class T>
inline constexpr bool kIsArray = false;
template <class T, size_t n>
inline constexpr bool kIsArray<std::array<T, n>> = true;

std::string join_path(const std::string& path, const std::string& key);
std::string item_path(const std::string& path, size_t index);

class ConfigReader {
 public:
  explicit ConfigReader(const ConfigNode& root) : root_(root) {}

  // Reads the whole tree, then checks required keys and calls every validate(), inner ones first.
  template <class T>
  void read(T& config);

  // One value under its path, without the checks that need the whole.
  template <class T>
  void read_value(const ConfigNode& node, const std::string& path, const Field& field, T& value);
  template <class T>
  void read_section(const ConfigNode& node, const std::string& path, T& section);

  const ConfigNode& root() const { return root_; }
  const OriginMap& origins() const { return origins_; }

 private:
  struct SectionVisitor;
  struct CheckVisitor;
  struct PathVisitor;

  template <class T>
  void check_value(const std::string& path, const Field& field, const T& value);
  template <class T>
  void check_section(const std::string& path, const T& section);
  template <class T>
  void read_list(const ConfigNode& node, const std::string& path, const Field& field,
                 std::vector<T>& list, const T& prototype);

  bool read_bool(const ConfigNode& node, const std::string& path);
  int64_t read_integer(const ConfigNode& node, const std::string& path, const Field& field);
  double read_number(const ConfigNode& node, const std::string& path, const Field& field);
  std::string read_string(const ConfigNode& node, const std::string& path);
  int64_t read_choice(const ConfigNode& node, const std::string& path,
                      std::span<const char* const> names);
  static bool is_unset(const ConfigNode& node, const Field& field);
  static void expect_map(const ConfigNode& node, const std::string& path);
  static void expect_list(const ConfigNode& node, const std::string& path, const char* of_what);
  void refuse_unknown(const ConfigNode& node, const std::string& path,
                      const std::vector<std::string>& valid) const;
  void check_range(const std::string& path, const Field& field, double value) const;
  [[noreturn]] void fail_validation(const std::string& section, const UsageError& error) const;
  Location nearest_location(std::string path) const;  // of the innermost section that is written

  const ConfigNode& root_;
  OriginMap origins_;
  std::vector<std::string> all_paths_;
};

// The tree that a struct stands for: every key, in the order of the member lists.
template <class T>
ConfigNode write_section(const T& section, const OriginMap& origins = {},
                         const std::string& path = "");

}  // namespace sluice

#include "trainer/config_reader_inl.h"
