// sluice import
#include <fmt/format.h>

#include "kernels/core/threads.h"
#include "trainer/commands/commands.h"
#include "trainer/hf/import_hf.h"

namespace sluice {

int run_import(const ImportOptions& options) {
  set_num_threads(default_num_threads(1));
  const HfImport result = import_hf(options.folder, options.output);
  for (const std::string& note : result.notes) print("note: " + note + "\n");
  print(fmt::format("{}: {} parameters, {} bytes\n", options.output, result.parameters,
                    result.bytes));
  if (result.logits_error) {
    print(fmt::format("logits agree with the folder's own to {:.1e}\n", *result.logits_error));
  } else {
    print("logits were not compared: the folder has no tokens.json and expected.safetensors\n");
  }
  return 0;
}

}  // namespace sluice
