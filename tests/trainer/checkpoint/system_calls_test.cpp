// The protocol as the kernel sees it, through strace: the order of system calls, and what happens
// when any one of them fails or is the last. Skipped where strace is missing or not allowed.
#include <sys/wait.h>

#include <cstdlib>
#include <regex>
#include <sstream>

#include "tests/trainer/checkpoint/checkpoint_support.h"

namespace sluice::test {
namespace {

constexpr const char* kFolderVariable = "SLUICE_TEST_CHECKPOINTS";

// What is traced: one save of step 20, by this executable run again. Not a test of its own.
TEST(SystemCallsChild, DISABLED_SaveStep20) {
  const char* folder = std::getenv(kFolderVariable);
  ASSERT_NE(folder, nullptr);
  SelfPeers self;
  CheckpointWriter writer(options_for(folder), self);
  const TestTensors tensors = small_model(2);
  const SaveResult result = writer.save(state_at(20), whole_pieces(tensors));
  if (!result.saved) std::exit(3);
}

// Runs the child under strace with these options; returns its exit code, 128 + n for signal n.
// Where these tests run in parts (GTEST_TOTAL_SHARDS) the child is whole in each.
int trace(const std::string& folder, const std::string& options, const std::string& log) {
  const std::string self = fs::read_symlink("/proc/self/exe").string();
  const std::string command = "env -u GTEST_TOTAL_SHARDS -u GTEST_SHARD_INDEX " +
                              std::string(kFolderVariable) + "='" + folder + "' strace -f " +
                              options + " -o '" + log + "' '" + self +
                              "' --gtest_also_run_disabled_tests "
                              "--gtest_filter=SystemCallsChild.* >/dev/null 2>&1";
  const int status = std::system(command.c_str());
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

bool strace_works() {
  static const bool works = std::system("strace -o /dev/null true >/dev/null 2>&1") == 0;
  return works;
}

struct Call {
  std::string name;
  std::string from;  // the file or folder; of a rename, the old name
  std::string to;
};

// The calls that matter, of a trace with paths (-y).
std::vector<Call> parse_trace(const std::string& log) {
  const std::regex on_descriptor(R"re((fsync|fdatasync|write|pwrite64)\(\d+<([^>]*)>.*= \d+$)re");
  const std::regex on_names(R"re((rename|renameat2?)\(.*"([^"]*)",.*"([^"]*)".*= 0$)re");
  std::vector<Call> calls;
  std::istringstream lines(read_text(log));
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (std::regex_search(line, match, on_descriptor)) calls.push_back({match[1], match[2], ""});
    if (std::regex_search(line, match, on_names)) calls.push_back({match[1], match[2], match[3]});
  }
  return calls;
}

bool is_sync(const Call& call) { return call.name == "fsync" || call.name == "fdatasync"; }
bool is_rename(const Call& call) { return call.name.starts_with("rename"); }

// Is there a sync of `path` among calls [begin, end), and no write to it after that?
bool synced(const std::vector<Call>& calls, size_t begin, size_t end, const std::string& path) {
  bool clean = false;
  for (size_t index = begin; index < end; ++index) {
    if (calls[index].from != path) continue;
    clean = is_sync(calls[index]) ||
            (clean && !calls[index].name.ends_with("write") && calls[index].name != "pwrite64");
  }
  return clean;
}

// What is wrong with the order of the calls of a save into `folder`.
std::vector<std::string> violations(const std::vector<Call>& calls, const std::string& folder) {
  std::vector<std::string> found;
  const std::string target = folder + "/step-00000020";
  size_t commit = calls.size();
  for (size_t index = 0; index < calls.size(); ++index) {
    if (is_rename(calls[index]) && calls[index].to == target) commit = index;
  }
  if (commit == calls.size()) return {"the checkpoint never got its name"};
  const std::string temporary = calls[commit].from;
  size_t last_entry = 0;  // the last file to get its name in the temporary folder
  int files = 0;
  bool latest = false;
  for (size_t index = 0; index < calls.size(); ++index) {
    const Call& call = calls[index];
    if (!is_rename(call) || index == commit) continue;
    if (!synced(calls, 0, index, call.from))
      found.push_back(call.from + " renamed before its sync");
    if (call.to == folder + "/latest") {
      latest = true;
      if (!synced(calls, commit, index, folder)) found.push_back("latest before the parent's sync");
    } else if (index < commit) {
      files += 1;
      last_entry = index;
    } else {
      found.push_back(call.to + " after the commit");
    }
  }
  if (files != 3) found.push_back("expected a manifest and two shards");
  if (!latest) found.push_back("latest is not updated");
  if (!synced(calls, last_entry, commit, temporary)) found.push_back("folder not synced");
  if (!synced(calls, commit, calls.size(), folder)) found.push_back("parent not synced");
  return found;
}

class SystemCalls : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!strace_works()) GTEST_SKIP() << "strace is missing or may not trace";
    save(folder_, 10, older_);
  }
  std::string log() const { return logs_.path() + "/trace"; }

  TempFolder folder_;
  TempFolder logs_;
  TestTensors older_ = small_model(1);
  TestTensors newer_ = small_model(2);
};

TEST_F(SystemCalls, SyncBeforeRenameAndParentAfter) {
  ASSERT_EQ(
      trace(folder_, "-y -e trace=fsync,fdatasync,write,pwrite64,rename,renameat,renameat2", log()),
      0);
  const std::vector<Call> calls = parse_trace(log());
  EXPECT_EQ(violations(calls, folder_), std::vector<std::string>{});

  // The check itself: without the syncs of any one path it must complain.
  std::set<std::string> paths;
  for (const Call& call : calls) {
    if (is_sync(call)) paths.insert(call.from);
  }
  EXPECT_EQ(paths.size(), 6u);  // two shards, manifest, latest, the folder, the parent
  for (const std::string& path : paths) {
    std::vector<Call> fewer;
    for (const Call& call : calls) {
      if (!is_sync(call) || call.from != path) fewer.push_back(call);
    }
    EXPECT_FALSE(violations(fewer, folder_).empty()) << "without the sync of " << path;
  }
}

// How many calls of each name a save makes.
int count_calls(const std::string& log, const std::string& name) {
  int count = 0;
  std::istringstream lines(read_text(log));
  for (std::string line; std::getline(lines, line);)
    count += contains(line, " " + name + "(") ? 1 : 0;
  return count;
}

class InjectedFaults : public SystemCalls,
                       public ::testing::WithParamInterface<std::pair<const char*, const char*>> {};

// At every call of one kind: the save fails or goes on, the newest checkpoint is right, and the
// process neither crashes nor leaves anything behind.
TEST_P(InjectedFaults, AtEveryCall) {
  const std::string call = GetParam().first;
  const std::string fault = GetParam().second;
  const bool killed = contains(fault, "SIGKILL");
#ifdef __SANITIZE_ADDRESS__
  if (call == "write" && !killed) GTEST_SKIP() << "the sanitizer itself writes, and may not fail";
#endif
  ASSERT_EQ(trace(folder_, "-e trace=" + call, log()), 0);
  const int count = count_calls(log(), call);
  ASSERT_GT(count, 0);
  int failed = 0;
  for (int when = 1; when <= count; ++when) {
    SCOPED_TRACE(call + " " + std::to_string(when));
    remove_folder(folder_.path() + "/step-00000020");
    const std::string inject = " -e inject=" + call + ":" + fault + ":when=" + std::to_string(when);
    const int code = trace(folder_, "-e trace=" + call + inject, log());
    EXPECT_TRUE(code == 0 || code == (killed ? 137 : 3)) << "exit code " << code;
    const FoundCheckpoint found = find(folder_);
    ASSERT_TRUE(found.checkpoint.has_value());
    EXPECT_TRUE(found.warnings.empty());
    const bool committed = found.checkpoint->manifest.state.step == 20;
    EXPECT_TRUE(committed || code != 0);
    const TestTensors& expected = committed ? newer_ : older_;
    EXPECT_TRUE(same_bytes(load_whole(found.checkpoint->folder, expected), expected));
    if (!killed) {
      EXPECT_TRUE(list_leftovers(folder_).empty());
    }
    for (const std::string& name : list_leftovers(folder_))
      remove_folder(folder_.path() + "/" + name);
    failed += code != 0;
  }
  EXPECT_GT(failed, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Checkpoint, InjectedFaults,
    ::testing::Values(std::pair{"fsync", "error=EIO"}, std::pair{"fsync", "signal=SIGKILL"},
                      std::pair{"write", "error=ENOSPC"}, std::pair{"write", "signal=SIGKILL"},
                      std::pair{"fallocate", "error=ENOSPC"}, std::pair{"rename", "error=EIO"},
                      std::pair{"rename", "signal=SIGKILL"}, std::pair{"renameat2", "error=EIO"},
                      std::pair{"mkdir", "error=EACCES"}),
    [](const auto& info) {
      const std::string fault = info.param.second;
      return std::string(info.param.first) + "_" + fault.substr(fault.find('=') + 1);
    });

}  // namespace
}  // namespace sluice::test
