// sluice config print | schema
#include "trainer/config.h"

#include <nlohmann/json.hpp>

#include "trainer/commands/commands.h"

namespace sluice {

int run_config_print(const ConfigPrintOptions& options) {
  const LoadedConfig loaded = load_config(options.config, options.overrides);
  if (!options.json) {
    print(to_yaml(loaded.resolved, ShowOrigins::yes));
    return 0;
  }
  nlohmann::ordered_json json;
  json["config"] = nlohmann::ordered_json::parse(to_json(loaded.resolved));
  json["origins"] = nlohmann::ordered_json::object();
  for (const FlatValue& value : flatten(loaded.resolved)) {
    json["origins"][value.path] = origin_of(value.where);
  }
  print(json.dump(2) + "\n");
  return 0;
}

int run_config_schema(const ConfigSchemaOptions&) {
  print(config_json_schema() + "\n");
  return 0;
}

}  // namespace sluice
