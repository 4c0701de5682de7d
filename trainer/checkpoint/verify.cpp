#include "trainer/checkpoint/verify.h"

#include <fmt/core.h>

#include <algorithm>

#include "data/files.h"
#include "kernels/core/error.h"
#include "trainer/checkpoint/folders.h"
#include "trainer/open_file.h"

namespace sluice {

namespace {

constexpr size_t kReadBlock = 1 << 20;
constexpr size_t kNamedTensors = 3;  // of a damaged file, in a message

// By a name from the manifest, which is not trusted.
OpenFile open_file(const std::string& folder, const std::string& name) {
  return OpenFile::beneath(folder, name, folder + "/" + kManifestName);
}

std::string hash_of(const OpenFile& file) {
  Xxh3Stream hash;
  std::vector<char> block(kReadBlock);
  for (uint64_t offset = 0; offset < file.bytes();) {
    const uint64_t count = std::min<uint64_t>(block.size(), file.bytes() - offset);
    file.read(offset, count, block.data());
    hash.update(block.data(), count);
    offset += count;
  }
  return hash.hex();
}

// Which tensors a damaged file takes along. By the manifest alone: a damaged file is not given to
// HDF5, which may crash on it and take the fall-back to an older checkpoint with it.
std::string tensors_in(const Manifest& manifest, const StoredFile& file) {
  std::string names;
  size_t count = 0;
  for (const StoredTensor& tensor : manifest.tensors) {
    for (const StoredPiece& piece : tensor.pieces) {
      if (piece.file != file.name) continue;
      count += 1;
      if (count > kNamedTensors) continue;
      names += fmt::format("{} {} [{}, {})", count == 1 ? "; it holds tensor" : ",", tensor.name,
                           piece.region.begin, piece.region.end);
    }
  }
  if (count > kNamedTensors) names += fmt::format(" and {} more", count - kNamedTensors);
  return names;
}

void check_size(const std::string& folder, const Manifest& manifest, const StoredFile& file,
                const OpenFile& open) {
  if (open.bytes() == uint64_t(file.bytes)) return;
  throw DataError(fmt::format("{}/{}: expected {} bytes, got {}{}", folder, file.name, file.bytes,
                              open.bytes(), tensors_in(manifest, file)));
}

void check_file(const std::string& folder, const Manifest& manifest, const StoredFile& file) {
  const OpenFile open = open_file(folder, file.name);
  check_size(folder, manifest, file, open);
  const std::string actual = hash_of(open);
  if (actual == file.hash) return;
  throw DataError(fmt::format("{}/{}: expected XXH3 {}, got {}{}", folder, file.name, file.hash,
                              actual, tensors_in(manifest, file)));
}

// A checkpoint that was renamed by hand to another step's name would be taken for newer than it is.
void check_step(const std::string& folder, const Manifest& manifest) {
  const std::optional<int64_t> step = parse_step_name(folder.substr(folder.rfind('/') + 1));
  if (step && *step != manifest.state.step) {
    throw DataError(fmt::format("{}/{}: expected step {}, got {}", folder, kManifestName, *step,
                                manifest.state.step));
  }
}

}  // namespace

Manifest read_manifest(const std::string& folder) {
  open_file(folder, kManifestName);  // refuses a link
  const std::string path = folder + "/" + kManifestName;
  Manifest manifest = parse_manifest(read_whole_file(path, kMaxManifestBytes), path);
  check_step(folder, manifest);
  return manifest;
}

std::string size_problem(const std::string& folder, const Manifest& manifest) {
  return outcome_of([&] {
           for (const StoredFile& file : manifest.files)
             check_size(folder, manifest, file, open_file(folder, file.name));
           return std::string();
         })
      .text;
}

VerifiedCheckpoint verify_checkpoint(const std::string& folder, CheckpointPeers& peers) {
  VerifiedCheckpoint checkpoint{.folder = folder, .manifest = {}};
  const Outcome mine = outcome_of([&] {
    checkpoint.manifest = read_manifest(folder);
    const std::vector<StoredFile>& files = checkpoint.manifest.files;
    for (size_t file = peers.rank(); file < files.size(); file += peers.size())
      check_file(folder, checkpoint.manifest, files[file]);
    return checkpoint.manifest.hash;
  });
  const std::vector<Outcome> outcomes = gather_outcomes(peers, mine);
  if (const Outcome* failure = first_failure(outcomes)) {
    if (failure->code == ExitCode::data) throw DataError(failure->text);
    if (failure->code == ExitCode::io) throw IoError(failure->text);
    throw Error(failure->code, failure->text);
  }
  for (const Outcome& outcome : outcomes) {
    if (outcome.text != outcomes[0].text)
      throw IoError(folder + ": the ranks see different manifests; wait for the file system");
  }
  return checkpoint;
}

FoundCheckpoint find_checkpoint(const std::string& checkpoints, CheckpointPeers& peers) {
  // Rank 0's list counts: folders may appear on the others later.
  const Outcome mine = outcome_of([&] {
    std::string steps;
    for (const int64_t step : list_steps(checkpoints)) steps += step_name(step) + "/";
    return steps;
  });
  const Outcome listed = gather_outcomes(peers, mine)[0];
  if (!listed.ok()) throw Error(listed.code, listed.text);

  FoundCheckpoint found;
  for (size_t begin = 0; begin < listed.text.size();) {
    const size_t end = listed.text.find('/', begin);
    const std::string folder = checkpoints + "/" + listed.text.substr(begin, end - begin);
    begin = end + 1;
    try {
      found.checkpoint = verify_checkpoint(folder, peers);
      return found;
    } catch (const Error& error) {
      if (error.code() == ExitCode::bug) throw;
      found.warnings.push_back(fmt::format("checkpoint {} is damaged: {}", folder, error.what()));
    }
  }
  if (found.warnings.empty()) return found;
  std::string message = checkpoints + ": no good checkpoint is left";
  for (const std::string& warning : found.warnings) message += "\n  " + warning;
  throw DataError(message);
}

}  // namespace sluice
