#include "trainer/option_list.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "kernels/core/error.h"
#include "trainer/config_node.h"
#include "trainer/scalars.h"
#include "trainer/suggest.h"

namespace sluice {

struct OptionList::State {
  CLI::App app;
  std::string command;
  std::vector<std::string> names = {"--help"};  // of options, with their dashes
  std::vector<std::string> takes_value;         // those of them that do

  CLI::Option* remember(CLI::Option* option, const std::string& name, bool with_value) {
    names.push_back(name);
    if (with_value) takes_value.push_back(name);
    return option;
  }
};

OptionList::OptionList(const std::string& command, const std::string& help)
    : state_(std::make_unique<State>()) {
  state_->command = command;
  state_->app.name("sluice " + command);
  state_->app.description(help);
}

OptionList::~OptionList() = default;

namespace {

// What newer versions of CLI11 refuse as the name of a positional argument.
void check_positional(const std::string& name) {
  SLUICE_CHECK(!name.empty() && name.find_first_of("= -") == std::string::npos,
               "a positional argument cannot be called '", name, "'");
}

}  // namespace

void OptionList::positional(const std::string& name, std::string& value, const std::string& help) {
  check_positional(name);
  state_->app.add_option(name, value, help)->required();
}

void OptionList::optional_positional(const std::string& name, std::string& value,
                                     const std::string& help) {
  check_positional(name);
  state_->app.add_option(name, value, help);
}

void OptionList::rest(const std::string& name, std::vector<std::string>& values,
                      const std::string& help, bool required) {
  check_positional(name);
  state_->app.add_option(name, values, help)->required(required);
}

void OptionList::flag(const std::string& name, bool& value, const std::string& help) {
  state_->remember(state_->app.add_flag(name, value, help), name, false);
}

void OptionList::value(const std::string& name, std::string& value, const std::string& help,
                       bool required) {
  auto* option = state_->app.add_option(name, value, help)->required(required);
  if (!value.empty()) option->capture_default_str();
  state_->remember(option, name, true);
}

void OptionList::value(const std::string& name, int64_t& value, const std::string& help,
                       int64_t min) {
  const std::string default_text = std::to_string(value);
  const auto take = [&value, name, min](const std::string& text) {
    const std::optional<int64_t> number = parse_integer(text);
    if (!number || *number < min) {
      const bool bounded = min > std::numeric_limits<int64_t>::min();
      throw UsageError(concat(name, ": expected an integer",
                              bounded ? concat(" of at least ", min) : "", ", got '", shown(text),
                              "'"));
    }
    value = *number;
  };
  auto* option = state_->app.add_option_function<std::string>(name, take, help)->type_name("INT");
  state_->remember(option->default_str(default_text), name, true);
}

void OptionList::value(const std::string& name, double& value, const std::string& help, double min,
                       double max) {
  const std::string default_text = format_number(value);
  const auto take = [&value, name, min, max](const std::string& text) {
    const std::optional<double> number = parse_number(text);
    if (!number || *number < min || *number > max) {
      throw UsageError(
          concat(name, ": expected a number from ", min, " to ", max, ", got '", shown(text), "'"));
    }
    value = *number;
  };
  auto* option =
      state_->app.add_option_function<std::string>(name, take, help)->type_name("NUMBER");
  state_->remember(option->default_str(default_text), name, true);
}

void OptionList::values(const std::string& name, std::vector<std::string>& values,
                        const std::string& help) {
  auto* option = state_->app.add_option(name, values, help);
  option->expected(1)->take_all();
  state_->remember(option, name, true);
}

void OptionList::refuse_unknown(const std::vector<std::string>& arguments) const {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--") return;
    if (argument.size() < 2 || argument[0] != '-' || argument == "-h") continue;
    const std::string name = argument.substr(0, argument.find('='));
    if (std::find(state_->names.begin(), state_->names.end(), name) == state_->names.end()) {
      throw UsageError(concat("sluice ", state_->command, ": no option '", shown(name), "'",
                              did_you_mean(name, state_->names),
                              "\n  options: ", join(state_->names)));
    }
    const auto& takers = state_->takes_value;
    const bool value_follows =
        name == argument && std::find(takers.begin(), takers.end(), name) != takers.end();
    if (value_follows) ++i;  // its value may begin with a dash
  }
}

bool OptionList::parse(const std::vector<std::string>& arguments, std::string* help_text) {
  const bool asks_help = std::any_of(arguments.begin(), arguments.end(), [](const auto& argument) {
    return argument == "--help" || argument == "-h";
  });
  if (asks_help) {
    *help_text = state_->app.help();
    return false;
  }
  refuse_unknown(arguments);
  try {
    state_->app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError& error) {
    throw UsageError(concat("sluice ", state_->command, ": ", error.what(), "\n  see: sluice ",
                            state_->command, " --help"));
  }
  return true;
}

}  // namespace sluice
