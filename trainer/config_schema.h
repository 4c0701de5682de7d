// JSON Schema (draft 2020-12) of a configuration struct, from its member lists: for editors.
#pragma once

#include <nlohmann/json.hpp>

#include "layers/registry.h"
#include "trainer/config_reader.h"

namespace sluice {

using OrderedJson = nlohmann::ordered_json;

OrderedJson bool_schema(bool value);
OrderedJson integer_schema(const Field& field, int64_t value);
OrderedJson number_schema(const Field& field, double value);
OrderedJson text_schema(const std::string& value);
OrderedJson choice_schema(std::span<const char* const> names, size_t value);
OrderedJson section_schema(OrderedJson properties);
// What may stand in place of a schema: a word for nothing, or a shorthand.
OrderedJson either(OrderedJson schema, OrderedJson other);
OrderedJson null_schema(const Field& field);

template <class T>
OrderedJson schema_of(const Field& field, const T& value);
template <class T>
OrderedJson schema_of_section(const T& section);
OrderedJson schema_of_branch();

struct SchemaVisitor {
  OrderedJson& properties;

  template <class T, class... Prototype>
  void operator()(const Field& field, const T& value, const Prototype&...) {
    OrderedJson schema = schema_of(field, value);
    schema["description"] = field.help;
    properties[field.name] = std::move(schema);
  }
};

template <class T>
OrderedJson schema_of_section(const T& section) {
  OrderedJson properties = OrderedJson::object();
  T copy = section;  // fields() is not const
  copy.fields(SchemaVisitor{properties});
  OrderedJson schema = section_schema(std::move(properties));
  if constexpr (HasShorthand<T>) schema = either(std::move(schema), {{"type", "string"}});
  return schema;
}

template <class T>
OrderedJson schema_of(const Field& field, const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return bool_schema(value);
  } else if constexpr (std::is_same_v<T, int64_t>) {
    return integer_schema(field, value);
  } else if constexpr (std::is_same_v<T, double>) {
    return number_schema(field, value);
  } else if constexpr (std::is_same_v<T, std::string>) {
    return text_schema(value);
  } else if constexpr (std::is_enum_v<T>) {
    return choice_schema(enum_names(value), size_t(value));
  } else if constexpr (kIsOptional<T>) {
    OrderedJson schema = schema_of(field, value.value_or(typename T::value_type{}));
    schema.erase("default");
    return either(std::move(schema), null_schema(field));
  } else if constexpr (kIsVector<T> || kIsArray<T>) {
    using Item = typename T::value_type;
    OrderedJson schema = {{"type", "array"}, {"items", schema_of(field, Item{})}};
    schema["items"].erase("default");
    if constexpr (kIsArray<T>) schema["minItems"] = schema["maxItems"] = value.size();
    if constexpr (HasShorthand<Item>) schema = either(std::move(schema), {{"type", "string"}});
    return schema;
  } else if constexpr (std::is_same_v<T, BranchConfig>) {
    return schema_of_branch();
  } else {
    return schema_of_section(value);
  }
}

}  // namespace sluice
