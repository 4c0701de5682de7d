// A whole run: ceilings, operators, steps, ceilings again, each printed as it comes.
#pragma once

#include <string>
#include <vector>

#include "kernels/core/threads.h"

namespace sluice::bench {

struct Options {
  std::vector<std::string> ops = {};     // none: all
  std::vector<std::string> models = {};  // of whole steps; none: all of the device's list
  std::string configs = SLUICE_SOURCE_DIR "/configs";
  std::string device = "auto";
  std::string precision = "";
  bool plain = false;  // shapes that miss a GPU's fast kernels, instead
  bool json = false;
  int threads = default_num_threads(1);
};

// False if something could not be timed; stderr names it.
bool run(const Options& options);

// One line to stderr.
void complain(const std::string& text);

}  // namespace sluice::bench
