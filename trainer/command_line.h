// The command line: finds the command, parses its options, runs it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "trainer/option_list.h"

namespace sluice {

struct Command {
  std::string name;  // "train", "data build"
  std::string help;
  // Parses and runs; returns the exit code, or throws.
  std::function<int(const Command&, const std::vector<std::string>& arguments)> run;
};

void print(const std::string& text);  // to stdout

// A command whose options are a struct with `void declare(OptionList&)`.
template <class Options>
Command make_command(const std::string& name, const std::string& help, int (*run)(const Options&)) {
  return {name, help, [run](const Command& command, const std::vector<std::string>& arguments) {
            Options options;
            OptionList list(command.name, command.help);
            options.declare(list);
            std::string help_text;
            if (list.parse(arguments, &help_text)) return run(options);
            print(help_text);
            return 0;
          }};
}

// Runs the command that the arguments (without the program's name) ask for; its exit code. Throws
// UsageError for an unknown one, and what the command throws.
int run_command_line(const std::vector<Command>& commands,
                     const std::vector<std::string>& arguments);

}  // namespace sluice
