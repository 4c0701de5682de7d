#include "trainer/hf/import_hf.h"

#include <cmath>
#include <filesystem>

#include "data/files.h"
#include "kernels/core/error.h"
#include "trainer/checkpoint/folders.h"
#include "trainer/checkpoint/writer.h"
#include "trainer/checkpoint_model.h"
#include "trainer/config.h"
#include "trainer/hf/hf_model.h"
#include "trainer/hf/safetensors.h"
#include "trainer/runtime_info.h"
#include "trainer/score.h"
#include "trainer/version.h"

namespace sluice {

namespace {

constexpr double kLogitsTolerance = 1e-4;  // relative, by norm; f32 against f32

// The folder in which the checkpoint is made, beside the output; gone when the import is over.
class Staging {
 public:
  explicit Staging(const std::string& output)
      : path_(folder_of(output) + "/." + std::filesystem::path(output).filename().string() +
              ".import.tmp") {
    remove_folder_if_there();
    make_folders(path_);
  }
  ~Staging() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  const std::string& path() const { return path_; }

 private:
  void remove_folder_if_there() const {
    if (exists(path_)) remove_folder(path_);  // of an import that was cut off
  }
  std::string path_;
};

std::vector<LocalPiece> pieces_of(const ParameterStore& store) {
  std::vector<LocalPiece> pieces;
  for (size_t i = 0; i < store.parameters().size(); ++i) {
    const Parameter& parameter = store.parameters()[i];
    pieces.push_back({.name = parameter.name,
                      .kind = TensorKind::model,
                      .dtype = store.dtype(),
                      .dims = parameter.dims,
                      .parts = parameter.parts,
                      .region = whole_region(parameter.dims),
                      .data = store.value({int32_t(i)}).data});
  }
  return pieces;
}

// Step 0 of a run that has not begun: no data cursor, no optimizer state.
TrainingState state_of(const LoadedModel& loaded) {
  Config config;
  config.model = loaded.config;
  return {.step = 0,
          .sluice_version = version(),
          .git = git_commit(),
          .config = resolved_yaml(config),
          .world_size = 1,
          .mesh = {{"dp", 1}, {"ep", 1}, {"cp", 1}},
          .data = {{"rows", 0}, {"stores", nlohmann::json::array()}},
          .rng_seed = uint64_t(config.seed),
          .rng_step = 0,
          .optimizer_t = 0,
          .runtime = runtime_info(kCpu)};
}

std::optional<double> compare_logits(const std::string& folder, const LoadedModel& loaded) {
  const std::string tokens = folder + "/tokens.json";
  const std::string reference = folder + "/expected.safetensors";
  if (!exists(tokens) || !exists(reference)) return std::nullopt;
  const SafetensorsFile file(reference);
  const SafetensorsEntry* const entry = file.find("logits");
  if (entry == nullptr) return std::nullopt;
  const TokenRows rows = read_token_rows(tokens, loaded.config.vocab_size);
  const Scores scores = score(loaded, rows, {.logits = true, .gradients = false});
  const Dims& dims = scores.logits.dims;
  if (entry->shape != std::vector<int64_t>{dims[0], dims[1], dims[2]}) {
    throw DataError(concat(reference, ": its logits are not ", to_string(dims), ", as ", tokens,
                           " and the model have it"));
  }
  std::vector<float> expected(entry->numel());
  file.read_values(*entry, DType::f32, expected.data());
  const float* const got = scores.logits.as<float>();
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double(got[i]) - double(expected[i]), 2);
    norm += std::pow(double(expected[i]), 2);
  }
  const double error = std::sqrt(difference / norm);
  if (!(error <= kLogitsTolerance)) {
    throw DataError(concat(reference, ": the logits differ by ", error, " (relative, by norm), ",
                           kLogitsTolerance, " is allowed; nothing was imported"));
  }
  return error;
}

}  // namespace

HfImport import_hf(const std::string& folder, const std::string& output) {
  if (!is_hf_folder(folder)) throw UsageError(folder + ": holds no config.json");
  if (exists(output)) throw UsageError(output + ": exists already; name a folder that does not");
  const LoadedModel loaded = load_hf_model(folder, DType::f32);
  const Staging staging(output);
  SelfPeers self;
  CheckpointWriterOptions options;
  options.folder = staging.path();
  options.run_id = "import";
  CheckpointWriter writer(std::move(options), self);
  const SaveResult saved = writer.save(state_of(loaded), pieces_of(*loaded.store));
  if (!saved.saved) throw IoError(concat(output, ": ", saved.problem));
  const LoadedModel again = load_checkpoint_model(saved.folder, DType::f32);
  HfImport result{.parameters = again.store->num_elements(),
                  .bytes = saved.bytes,
                  .logits_error = compare_logits(folder, again),
                  .notes = loaded.notes};
  rename_new(saved.folder, output);
  sync_folder(folder_of(output));
  return result;
}

}  // namespace sluice
