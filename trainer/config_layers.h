// The layers of a configuration: base < file < command line; later wins, origins are kept.
#pragma once

#include <string>
#include <vector>

#include "trainer/config_node.h"

namespace sluice {

// A file over the file that its `base:` names (a path relative to it), and so on down.
ConfigNode load_config_file(const std::string& path, Sources& sources);

// `dotted.key=value` texts as one layer. A value that begins with [ { " or ' is YAML, nothing or
// `null` unsets, any other is taken as it stands.
ConfigNode parse_overrides(const std::vector<std::string>& overrides, Sources& sources);

// Puts a layer over another, with the rule for notations of model.stack.
void put_over(ConfigNode& lower, ConfigNode layer);

}  // namespace sluice
