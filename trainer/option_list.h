// A command's options: each command has a struct whose `declare` names its members once, for
// parsing, --help and did-you-mean.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace sluice {

class OptionList {
 public:
  OptionList(const std::string& command, const std::string& help);
  ~OptionList();
  OptionList(const OptionList&) = delete;
  OptionList& operator=(const OptionList&) = delete;

  // Positional: NAME is required, the rest takes what is left.
  void positional(const std::string& name, std::string& value, const std::string& help);
  void optional_positional(const std::string& name, std::string& value, const std::string& help);
  void rest(const std::string& name, std::vector<std::string>& values, const std::string& help,
            bool required = false);

  // --name
  void flag(const std::string& name, bool& value, const std::string& help);
  // --name VALUE; integers take exponents and units, as in configurations
  void value(const std::string& name, std::string& value, const std::string& help,
             bool required = false);
  void value(const std::string& name, int64_t& value, const std::string& help,
             int64_t min = std::numeric_limits<int64_t>::min());
  void value(const std::string& name, double& value, const std::string& help, double min,
             double max);
  // --name VALUE, repeatable
  void values(const std::string& name, std::vector<std::string>& values, const std::string& help);

  // Fills the members. Returns false where --help was asked for: its text is in `help_text`.
  // Throws UsageError.
  bool parse(const std::vector<std::string>& arguments, std::string* help_text);

 private:
  void refuse_unknown(const std::vector<std::string>& arguments) const;

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice
