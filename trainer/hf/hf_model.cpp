#include "trainer/hf/hf_model.h"

#include <sys/stat.h>

#include "kernels/core/error.h"
#include "trainer/hf/config_mapping.h"
#include "trainer/hf/name_table.h"

namespace sluice {

bool is_hf_folder(const std::string& path) {
  struct stat status {};
  return stat((path + "/config.json").c_str(), &status) == 0;
}

LoadedModel load_hf_model(const std::string& folder, DType dtype) {
  HfConfig hf = read_hf_config(folder);
  const SafetensorsFolder files(folder);
  // Each branch has a norm at least: a config.json cannot ask for more branches than that.
  if (hf.model.stack.branches.size() > files.tensors().size()) {
    throw DataError(concat(folder, ": config.json asks for ", hf.model.stack.branches.size(),
                           " branches, the files hold ", files.tensors().size(), " tensors"));
  }
  LoadedModel loaded;
  loaded.store = std::make_unique<ParameterStore>(dtype);
  try {
    loaded.model = std::make_unique<Model>(without_auxiliary_losses(hf.model), *loaded.store);
  } catch (const UsageError& error) {  // of a configuration, which here is a file's content
    throw DataError(concat(folder, "/config.json: ", error.what()));
  }
  loaded.tensors = hf_tensors(hf.family, loaded.model->branches(), *loaded.store,
                              detect_style(hf.family, files));
  check_hf_tensors(hf.family, loaded.tensors, files);
  loaded.store->freeze();
  load_hf_tensors(loaded.tensors, files, *loaded.store);
  loaded.config = std::move(hf.model);
  loaded.notes = std::move(hf.notes);
  return loaded;
}

}  // namespace sluice
