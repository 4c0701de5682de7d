#include "trainer/command_line.h"

#include <cstdio>

#include "kernels/core/error.h"
#include "trainer/config_node.h"
#include "trainer/suggest.h"
#include "trainer/version.h"

namespace sluice {
namespace {

std::string overview(const std::vector<Command>& commands) {
  size_t width = 0;
  for (const Command& command : commands) width = std::max(width, command.name.size());
  std::string text =
      "sluice trains linear-time sequence models and their hybrids.\n\n"
      "usage: sluice COMMAND ... ; sluice COMMAND --help; sluice --version\n\n";
  for (const Command& command : commands) {
    text += "  " + command.name + std::string(width - command.name.size() + 2, ' ') + command.help +
            "\n";
  }
  return text;
}

// "data build" takes two words of the arguments.
size_t words_of(const std::string& name) { return name.find(' ') == std::string::npos ? 1 : 2; }

std::vector<std::string> names_of(const std::vector<Command>& commands, const std::string& group) {
  std::vector<std::string> names;
  for (const Command& command : commands) {
    if (group.empty()) names.push_back(command.name);
    if (!group.empty() && command.name.starts_with(group + " ")) {
      names.push_back(command.name.substr(group.size() + 1));
    }
  }
  return names;
}

[[noreturn]] void fail_no_command(const std::vector<Command>& commands,
                                  const std::vector<std::string>& arguments) {
  const std::string first = arguments.empty() ? "" : arguments[0];
  const std::vector<std::string> inner = names_of(commands, first);
  if (!first.empty() && !inner.empty()) {
    const std::string second = arguments.size() > 1 ? arguments[1] : "";
    throw UsageError(concat("sluice ", first, ": expected one of ", join(inner), ", got '",
                            shown(second), "'", did_you_mean(second, inner)));
  }
  const std::vector<std::string> all = names_of(commands, "");
  std::string got = first.empty() ? "nothing" : concat("'", shown(first), "'");
  throw UsageError(concat("expected a command, got ", got, did_you_mean(first, all),
                          "\n  commands: ", join(all)));
}

}  // namespace

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

int run_command_line(const std::vector<Command>& commands,
                     const std::vector<std::string>& arguments) {
  const std::string first = arguments.empty() ? "" : arguments[0];
  if (first == "--version" || first == "--help" || first == "-h") {
    print(first == "--version" ? version_text() : overview(commands));
    return 0;
  }
  for (const Command& command : commands) {
    const size_t words = words_of(command.name);
    if (arguments.size() < words) continue;
    const bool is_it = command.name == (words == 1 ? first : first + " " + arguments[1]);
    if (!is_it) continue;
    return command.run(command, {arguments.begin() + std::ptrdiff_t(words), arguments.end()});
  }
  fail_no_command(commands, arguments);
}

}  // namespace sluice
