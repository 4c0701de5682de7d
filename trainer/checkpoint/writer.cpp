#include "trainer/checkpoint/writer.h"

#include <fmt/core.h>

#include <map>

#include "data/files.h"
#include "trainer/checkpoint/folders.h"
#include "trainer/checkpoint/json_node.h"

namespace sluice {

using nlohmann::ordered_json;

namespace {

// Beyond the elements: checksums, indices, the manifest.
constexpr double kRoomFactor = 1.2;
// As large as the manifest that the ranks' reports go into.
constexpr JsonLimits kReportLimits{.max_bytes = kMaxManifestBytes, .max_values = kMaxManifestBytes};

// What all ranks have written, as the manifest's lists; tensors in the order of their first piece.
Manifest merge(const TrainingState& state, const std::vector<Outcome>& written) {
  Manifest manifest;
  manifest.state = state;
  std::map<std::string, size_t> index_of;
  for (size_t rank = 0; rank < written.size(); ++rank) {
    const std::string where = fmt::format("report of rank {}", rank);
    const Json report = parse_json(written[rank].text, where, kReportLimits);
    const JsonNode root(report, where);
    for (const JsonNode& file : root.member("files").items(SIZE_MAX))
      manifest.files.push_back(file_from_json(file));
    for (const JsonNode& node : root.member("tensors").items(SIZE_MAX)) {
      StoredTensor tensor = tensor_from_json(node);
      const auto [found, added] = index_of.emplace(tensor.name, manifest.tensors.size());
      if (added) {
        manifest.tensors.push_back(std::move(tensor));
        continue;
      }
      StoredTensor& known = manifest.tensors[found->second];
      SLUICE_CHECK(
          known.dims == tensor.dims && known.dtype == tensor.dtype && known.kind == tensor.kind,
          "ranks differ about tensor ", tensor.name);
      for (StoredPiece& piece : tensor.pieces) known.pieces.push_back(std::move(piece));
    }
  }
  return manifest;
}

int64_t total_bytes(const Manifest& manifest) {
  int64_t bytes = 0;
  for (const StoredFile& file : manifest.files) bytes += file.bytes;
  return bytes;
}

}  // namespace

CheckpointWriter::CheckpointWriter(CheckpointWriterOptions options, CheckpointPeers& peers)
    : options_(std::move(options)), peers_(&peers) {
  SLUICE_CHECK(safe_run_id(options_.run_id), "run id \"", options_.run_id, "\"");
  if (!options_.free_bytes) options_.free_bytes = free_bytes;
}

void CheckpointWriter::stage(const std::string& name) const {
  if (options_.on_stage) options_.on_stage(name);
}

std::string CheckpointWriter::prepare(int64_t step,
                                      const std::vector<std::string>& needed_bytes) const {
  double needed = 0;
  for (const std::string& bytes : needed_bytes) needed += std::stod(bytes);
  make_folders(options_.folder);
  const std::string target = options_.folder + "/" + step_name(step);
  if (exists(target))
    throw IoError(fmt::format("{}: exists already; move it away to save this step", target));
  const int64_t room = options_.free_bytes(options_.folder);
  if (needed * kRoomFactor > double(room)) {
    throw IoError(
        fmt::format("{}: checkpoint {} needs {:.0f} bytes, {} are free; free some space or "
                    "lower checkpoint.keep",
                    options_.folder, step_name(step), needed * kRoomFactor, room));
  }
  // Left by this process only: an earlier attempt at this step.
  remove_folder(temporary_);
  make_folders(temporary_);
  stage("prepared");
  return "";
}

std::string CheckpointWriter::write_files(const std::vector<LocalPiece>& pieces) const {
  ordered_json files = ordered_json::array();
  ordered_json tensors = ordered_json::array();
  for (const ShardFile& shard : plan_files(pieces, peers_->rank(), options_.max_file_bytes)) {
    const WrittenFile written = write_shard_file(temporary_, shard);
    files.push_back(to_json(written.file));
    for (const StoredTensor& tensor : written.tensors) tensors.push_back(to_json(tensor));
    stage("wrote " + shard.name);
  }
  return ordered_json{{"files", std::move(files)}, {"tensors", std::move(tensors)}}.dump();
}

std::string CheckpointWriter::commit(const TrainingState& state,
                                     const std::vector<Outcome>& written) const {
  stage("gathered");
  const Manifest manifest = merge(state, written);
  const std::string path = temporary_ + "/" + kManifestName;
  const std::string text = to_text(manifest);
  // What could not be loaded must not be committed: a hole here is a bug of whoever cut the pieces.
  try {
    parse_manifest(text, path);
  } catch (const DataError& error) {
    throw Error(ExitCode::bug, error.what());
  }
  atomic_write_file(path, text);
  stage("wrote the manifest");
  sync_folder(temporary_);
  stage("synced the folder");
  rename_new(temporary_, options_.folder + "/" + step_name(state.step));
  stage("renamed");
  sync_folder(options_.folder);
  stage("synced the parent");
  return std::to_string(total_bytes(manifest));
}

// A hint: the checkpoint counts without it.
void CheckpointWriter::update_latest(int64_t step, SaveResult& result) const {
  const Outcome outcome = outcome_of([&] {
    atomic_write_file(options_.folder + "/latest", step_name(step) + "\n");
    return std::string();
  });
  if (!outcome.ok()) result.problem = "saved, but the file `latest` is not: " + outcome.text;
  stage("updated latest");
}

SaveResult CheckpointWriter::give_up(const Outcome& failure) {
  if (peers_->rank() == 0) {
    outcome_of([&] {
      remove_folder(temporary_);
      return std::string();
    });
  }
  if (failure.code != ExitCode::io) throw Error(failure.code, failure.text);
  failures_ += 1;
  if (failures_ >= options_.max_failures) {
    throw IoError(fmt::format("{} checkpoints in a row could not be saved; the last: {}", failures_,
                              failure.text));
  }
  return {.saved = false, .folder = {}, .problem = failure.text, .bytes = 0};
}

SaveResult CheckpointWriter::attempt(const TrainingState& state,
                                     const std::vector<LocalPiece>& pieces) {
  const bool first = peers_->rank() == 0;
  int64_t needed = 0;
  for (const LocalPiece& piece : pieces) needed += piece.bytes();
  const std::vector<std::string> needed_bytes = peers_->all_gather(std::to_string(needed));

  Outcome mine;
  if (first) mine = outcome_of([&] { return prepare(state.step, needed_bytes); });
  const std::vector<Outcome> prepared = gather_outcomes(*peers_, mine);
  if (const Outcome* failure = first_failure(prepared)) return give_up(*failure);

  mine = outcome_of([&] { return write_files(pieces); });
  const std::vector<Outcome> written = gather_outcomes(*peers_, mine);
  if (const Outcome* failure = first_failure(written)) return give_up(*failure);

  mine = Outcome();
  if (first) mine = outcome_of([&] { return commit(state, written); });
  const std::vector<Outcome> committed = gather_outcomes(*peers_, mine);
  if (const Outcome* failure = first_failure(committed)) return give_up(*failure);

  failures_ = 0;
  SaveResult result{.saved = true,
                    .folder = options_.folder + "/" + step_name(state.step),
                    .problem = {},
                    .bytes = std::stoll(committed[0].text)};
  if (first) update_latest(state.step, result);
  return result;
}

SaveResult CheckpointWriter::save(const TrainingState& state,
                                  const std::vector<LocalPiece>& pieces) {
  temporary_ = options_.folder + "/" + temporary_name(state.step, options_.run_id);
  return attempt(state, pieces);
}

}  // namespace sluice
