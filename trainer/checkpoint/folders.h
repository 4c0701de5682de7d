// Names inside <run>/checkpoints, and the calls that std::filesystem lacks.
//
//   step-00001000                    a checkpoint, complete since it has this name
//   latest                           the newest one's name; a hint for people and scripts
//   .step-00001000.<run id>.tmp      being written
//   .trash-step-00001000.<run id>    being deleted
//   aside-step-00001000.<run id>     newer than the checkpoint that a run resumed from
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sluice {

inline constexpr int64_t kMaxStep = 99'999'999;

std::string step_name(int64_t step);  // "step-00001000"
// The whole name or nothing: "step-00001000.bak" is no checkpoint.
std::optional<int64_t> parse_step_name(std::string_view name);
std::string temporary_name(int64_t step, const std::string& run_id);
std::string trash_name(int64_t step, const std::string& run_id);
std::string aside_name(int64_t step, const std::string& run_id);

// Letters, digits, '_' and '-', at most 64: it goes into names of folders.
bool safe_run_id(std::string_view id);

// Steps that have a folder, newest first. Empty if there is no such folder. Throws IoError if it
// cannot be listed.
std::vector<int64_t> list_steps(const std::string& checkpoints);
// Names of leftovers: temporary folders, trash, and temporary files of `latest`.
std::vector<std::string> list_leftovers(const std::string& checkpoints);

// Makes the folder and its parents; those that are new are on disk when it returns. Throws IoError.
void make_folders(const std::string& folder);
// Anything of that name, a dangling link too.
bool exists(const std::string& path);
// Renames, and fails if the target exists. Throws IoError.
void rename_new(const std::string& from, const std::string& to);
// Removes a folder and what is in it, never following links. Throws IoError.
void remove_folder(const std::string& folder);
// What a user may write to the file system that holds the folder.
int64_t free_bytes(const std::string& folder);

// Throws IoError, in one line, unless checkpoints can be written there: makes the folder, writes,
// syncs, renames and removes a small file. For before the first step.
void probe_folder(const std::string& checkpoints);

}  // namespace sluice
