#include "tests/bench/selection.h"

#include <algorithm>

#include "trainer/suggest.h"

namespace sluice::bench {

bool is_chosen(const std::vector<std::string>& ops, const std::string& name) {
  return ops.empty() || std::find(ops.begin(), ops.end(), name) != ops.end();
}

std::vector<Family> select_families(const std::vector<std::string>& ops) {
  std::vector<Family> families = all_families();
  std::vector<std::string> names = {kStep};
  for (const Family& family : families) names.push_back(family.name);
  for (const std::string& op : ops) {
    if (std::find(names.begin(), names.end(), op) != names.end()) continue;
    throw UsageError("--ops: there is no operator '" + op + "'" + did_you_mean(op, names) +
                     "\nknown: " + join(names));
  }
  std::erase_if(families, [&](const Family& family) { return !is_chosen(ops, family.name); });
  return families;
}

}  // namespace sluice::bench
