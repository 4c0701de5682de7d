// Saves that fail leave everything as it was; saves that are killed leave the older checkpoint.
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>

#include "tests/trainer/checkpoint/checkpoint_support.h"

namespace sluice::test {
namespace {

// A limit on the size of files, for as long as the object lives: the disk is full.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(uint64_t bytes) {
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

class FailedSave : public ::testing::Test {
 protected:
  FailedSave() : older_(small_model(1)), newer_(small_model(2)) {
    save(folder_, 10, older_, 2);
    before_ = contents(folder_);
  }

  void expect_untouched() {
    EXPECT_EQ(contents(folder_), before_);
    EXPECT_TRUE(same_bytes(load_whole(folder_.path() + "/step-00000010", older_), older_));
  }

  TempFolder folder_;
  TestTensors older_;
  TestTensors newer_;
  std::map<std::string, std::string> before_;
};

TEST_F(FailedSave, AFullDiskAtAnySizeLeavesNoTrace) {
  uint64_t largest = 0;
  for (const auto& [name, bytes] : before_) largest = std::max<uint64_t>(largest, bytes.size());
  for (const uint64_t limit :
       {uint64_t{0}, uint64_t{1}, uint64_t{1000}, largest / 2, largest - 1}) {
    SaveResult result;
    {
      const FileSizeLimit full(limit);
      result = save_with(options_for(folder_), 20, newer_, 2);
    }
    EXPECT_FALSE(result.saved);
    EXPECT_TRUE(contains(result.problem, "File too large")) << result.problem;
    EXPECT_TRUE(contains(result.problem, " bytes needed")) << result.problem;
    expect_untouched();
  }
  EXPECT_TRUE(save_with(options_for(folder_), 20, newer_, 2).saved);
}

TEST_F(FailedSave, TooLittleFreeSpaceIsSeenBeforeWriting) {
  int64_t needed = 0;
  for (const TestTensor& tensor : newer_) needed += int64_t(tensor.bytes.size());
  CheckpointWriterOptions options = options_for(folder_);
  options.free_bytes = [&](const std::string&) { return needed * 12 / 10 - 1; };
  options.on_stage = [](const std::string& stage) { ADD_FAILURE() << stage; };
  const SaveResult result = save_with(options, 20, newer_, 2);
  EXPECT_FALSE(result.saved);
  EXPECT_TRUE(contains(result.problem, std::to_string(needed * 12 / 10 - 1) + " are free"))
      << result.problem;
  expect_untouched();
  options.on_stage = nullptr;
  options.free_bytes = [&](const std::string&) { return needed * 12 / 10 + 1; };
  EXPECT_TRUE(save_with(options, 20, newer_, 2).saved);
}

TEST_F(FailedSave, TheThirdInARowIsAnError) {
  SelfPeers self;
  CheckpointWriter writer(options_for(folder_), self);
  const std::vector<LocalPiece> pieces = whole_pieces(newer_);
  {
    const FileSizeLimit full(0);
    EXPECT_FALSE(writer.save(state_at(20), pieces).saved);
    EXPECT_FALSE(writer.save(state_at(30), pieces).saved);
  }
  EXPECT_TRUE(writer.save(state_at(40), pieces).saved);  // counting starts anew
  const FileSizeLimit full(0);
  EXPECT_FALSE(writer.save(state_at(50), pieces).saved);
  EXPECT_FALSE(writer.save(state_at(60), pieces).saved);
  const std::string message = error_of([&] { writer.save(state_at(70), pieces); }, ExitCode::io);
  EXPECT_TRUE(contains(message, "3 checkpoints in a row")) << message;
}

TEST_F(FailedSave, OneRanksFailureIsEveryRanks) {
  for (const int broken : {0, 1, 2}) {
    std::mutex mutex;
    std::vector<std::string> problems;
    run_ranks(3, [&](Communicator& comm) {
      CommunicatorPeers peers(comm);
      CheckpointWriterOptions options = options_for(folder_);
      if (comm.rank() == broken) {
        options.on_stage = [](const std::string& stage) {
          if (stage.starts_with("wrote optim")) throw IoError("the disk has gone");
        };
      }
      CheckpointWriter writer(options, peers);
      const SaveResult result =
          writer.save(state_at(20), share_of(whole_pieces(newer_), comm.rank(), 3));
      const std::lock_guard lock(mutex);
      problems.push_back(result.saved ? "saved" : result.problem);
    });
    EXPECT_EQ(problems, std::vector<std::string>(3, "the disk has gone"));
    expect_untouched();
  }
}

TEST_F(FailedSave, AnExistingTargetIsKept) {
  const SaveResult result = save_with(options_for(folder_), 10, newer_);
  EXPECT_FALSE(result.saved);
  EXPECT_TRUE(contains(result.problem, "step-00000010: exists already")) << result.problem;
  expect_untouched();
  // One that appears while the files are being written.
  CheckpointWriterOptions options = options_for(folder_);
  options.on_stage = [&](const std::string& stage) {
    if (stage == "gathered") fs::create_directory(folder_.path() + "/step-00000020");
  };
  EXPECT_FALSE(save_with(options, 20, newer_).saved);
  EXPECT_TRUE(fs::is_empty(folder_.path() + "/step-00000020"));
  fs::remove(folder_.path() + "/step-00000020");
  expect_untouched();
}

TEST_F(FailedSave, ALinkInPlaceOfTheTemporaryFolderIsNotFollowed) {
  const TempFolder victim;
  spit(victim.path() + "/precious", "data");
  fs::create_directory_symlink(victim.path(), folder_.path() + "/.step-00000020.test-1.tmp");
  EXPECT_TRUE(save_with(options_for(folder_), 20, newer_).saved);
  EXPECT_EQ(contents(victim).size(), 1u);
}

TEST_F(FailedSave, AFailedHintIsAWarning) {
  fs::remove(folder_.path() + "/latest");
  fs::create_directory(folder_.path() + "/latest");
  const SaveResult result = save_with(options_for(folder_), 20, newer_);
  EXPECT_TRUE(result.saved);
  EXPECT_TRUE(contains(result.problem, "latest")) << result.problem;
  EXPECT_EQ(find(folder_).checkpoint->folder, folder_.path() + "/step-00000020");
}

TEST(CheckpointFolder, ProblemsAreKnownBeforeTheFirstStep) {
  const TempFolder folder;
  probe_folder(folder.path() + "/run/checkpoints");
  EXPECT_TRUE(fs::is_empty(folder.path() + "/run/checkpoints"));
  spit(folder.path() + "/file", "x");
  for (const char* path : {"/file", "/file/checkpoints"}) {
    const std::string message = error_of([&] { probe_folder(folder.path() + path); }, ExitCode::io);
    EXPECT_FALSE(contains(message, "\n")) << message;
  }
}

// Runs `work` in a child process; returns its wait status.
int in_child(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    work();
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

TEST_F(FailedSave, AReadOnlyFolderIsAFailedSave) {
  fs::permissions(folder_.path(), fs::perms(0555));
  const int status = in_child([&] {
    // Root may write anywhere.
    if (::getuid() == 0 && ::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const SaveResult result = save_with(options_for(folder_), 20, newer_);
    if (result.saved || !contains(result.problem, "Permission denied")) ::_exit(3);
    error_of([&] { probe_folder(folder_); }, ExitCode::io);
  });
  fs::permissions(folder_.path(), fs::perms(0755));
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  expect_untouched();
}

// Every stage of the protocol, in order.
std::vector<std::string> stages(const std::string& folder, const TestTensors& tensors) {
  std::vector<std::string> names;
  CheckpointWriterOptions options = options_for(folder);
  options.on_stage = [&](const std::string& stage) { names.push_back(stage); };
  EXPECT_TRUE(save_with(options, 99, tensors).saved);
  return names;
}

TEST_F(FailedSave, KilledAtAnyStageTheOlderCheckpointStays) {
  std::vector<std::string> names;
  {
    const TempFolder dry;
    names = stages(dry, newer_);
  }
  ASSERT_EQ(names, (std::vector<std::string>{"prepared", "wrote model-0.h5", "wrote optim-0.h5",
                                             "gathered", "wrote the manifest", "synced the folder",
                                             "renamed", "synced the parent", "updated latest"}));
  for (const std::string& last : names) {
    const bool committed =
        last == "renamed" || last == "synced the parent" || last == "updated latest";
    for (const int num_ranks : {1, 2}) {
      SCOPED_TRACE(last);
      const int status = in_child([&] {
        CheckpointWriterOptions options = options_for(folder_);
        options.on_stage = [&](const std::string& stage) {
          if (stage == last) ::raise(SIGKILL);
        };
        save_with(options, 20, newer_, num_ranks);
      });
      ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
      const FoundCheckpoint found = find(folder_);
      ASSERT_TRUE(found.checkpoint.has_value());
      EXPECT_TRUE(found.warnings.empty());
      EXPECT_EQ(found.checkpoint->manifest.state.step, committed ? 20 : 10);
      const TestTensors& expected = committed ? newer_ : older_;
      EXPECT_TRUE(same_bytes(load_whole(found.checkpoint->folder, expected), expected));
      // The next run saves the same step.
      remove_folder(folder_.path() + "/step-00000020");
      save(folder_, 20, newer_);
      remove_folder(folder_.path() + "/step-00000020");
      spit(folder_.path() + "/latest", "step-00000010\n");
      expect_untouched();
    }
  }
}

}  // namespace
}  // namespace sluice::test
