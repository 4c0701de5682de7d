#include "trainer/config_schema.h"

#include <cmath>

namespace sluice {
namespace {

void add_range(OrderedJson& schema, const Field& field) {
  if (std::isfinite(field.min)) schema["minimum"] = field.min;
  if (std::isfinite(field.max)) schema["maximum"] = field.max;
}

}  // namespace

OrderedJson bool_schema(bool value) { return {{"type", "boolean"}, {"default", value}}; }

OrderedJson integer_schema(const Field& field, int64_t value) {
  OrderedJson plain = {{"type", "integer"}};
  add_range(plain, field);
  OrderedJson with_unit = {{"type", "string"}, {"pattern", "^[0-9.]+([kMGT]|[KMGT]i)B?$"}};
  return {{"anyOf", {plain, with_unit}}, {"default", value}};
}

OrderedJson number_schema(const Field& field, double value) {
  OrderedJson schema = {{"type", "number"}};
  add_range(schema, field);
  if (std::isfinite(value)) schema["default"] = value;
  return schema;
}

OrderedJson text_schema(const std::string& value) {
  return {{"type", "string"}, {"default", value}};
}

OrderedJson choice_schema(std::span<const char* const> names, size_t value) {
  OrderedJson words = OrderedJson::array();
  for (const char* name : names) words.push_back(name);
  return {{"enum", words}, {"default", names[value]}};
}

OrderedJson section_schema(OrderedJson properties) {
  return {
      {"type", "object"}, {"properties", std::move(properties)}, {"additionalProperties", false}};
}

OrderedJson either(OrderedJson schema, OrderedJson other) {
  return {{"anyOf", {std::move(schema), std::move(other)}}};
}

OrderedJson null_schema(const Field& field) {
  if (field.unset[0] == '\0') return {{"type", "null"}};
  return {{"const", field.unset}};
}

OrderedJson schema_of_branch() {
  OrderedJson kinds = OrderedJson::array();
  BranchKinds::for_each([&]<class Kind>() {
    OrderedJson schema = schema_of_section(typename Kind::Config{});
    schema["properties"]["type"] = {{"const", Kind::kName}};
    schema["required"] = OrderedJson::array({"type"});
    kinds.push_back(std::move(schema));
  });
  return {{"anyOf", std::move(kinds)}};
}

}  // namespace sluice
