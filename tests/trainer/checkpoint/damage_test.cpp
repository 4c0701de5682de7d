// Whatever happens to a file of a checkpoint: refused by name, and the next older one is taken.
#include <sys/stat.h>

#include "tests/trainer/checkpoint/checkpoint_support.h"

namespace sluice::test {
namespace {

// Two checkpoints, of steps 10 and 20; the newer one gets damaged.
class Damage : public ::testing::Test {
 protected:
  Damage() : older_(small_model(1)), newer_(small_model(2)) {
    save(folder_, 10, older_, 2);
    path_ = save(folder_, 20, newer_, 2);
    good_ = contents(path_);
  }

  void expect_fallback(const std::string& name) {
    const FoundCheckpoint found = find(folder_);
    ASSERT_TRUE(found.checkpoint.has_value());
    EXPECT_EQ(found.checkpoint->folder, folder_.path() + "/step-00000010");
    ASSERT_EQ(found.warnings.size(), 1u);
    EXPECT_TRUE(contains(found.warnings[0], path_ + "/" + name)) << found.warnings[0];
    EXPECT_TRUE(same_bytes(load_whole(found.checkpoint->folder, older_), older_));
  }

  void restore(const std::string& name) {
    fs::remove_all(path_ + "/" + name);
    spit(path_ + "/" + name, good_.at(name));
  }

  TempFolder folder_;
  TestTensors older_;
  TestTensors newer_;
  std::string path_;
  std::map<std::string, std::string> good_;  // the newer one's files
};

TEST_F(Damage, UndamagedIsFound) {
  const FoundCheckpoint found = find(folder_);
  ASSERT_TRUE(found.checkpoint.has_value());
  EXPECT_EQ(found.checkpoint->folder, path_);
  EXPECT_TRUE(found.warnings.empty());
  EXPECT_EQ(good_.size(), 5u);  // a manifest, and two files a rank
}

TEST_F(Damage, TruncatedFilesAreRefused) {
  for (const auto& [name, bytes] : good_) {
    for (const size_t length : {size_t{0}, size_t{1}, bytes.size() / 2, bytes.size() - 1}) {
      SCOPED_TRACE(name + " of " + std::to_string(length) + " bytes");
      spit(path_ + "/" + name, bytes.substr(0, length));
      expect_fallback(name);
      restore(name);
    }
  }
}

TEST_F(Damage, LongerFilesAreRefused) {
  for (const auto& [name, bytes] : good_) {
    spit(path_ + "/" + name, bytes + '\0');
    expect_fallback(name);
    restore(name);
  }
}

TEST_F(Damage, MissingAndSwappedFilesAreRefused) {
  for (const auto& [name, bytes] : good_) {
    fs::remove(path_ + "/" + name);
    expect_fallback(name);
    restore(name);
  }
  // The older checkpoint's file, good in itself.
  spit(path_ + "/model-0.h5", read_text(folder_.path() + "/step-00000010/model-0.h5"));
  expect_fallback("model-0.h5");
}

TEST_F(Damage, FilesThatAreNoFilesAreRefused) {
  for (const auto& [name, bytes] : good_) {
    const std::string file = path_ + "/" + name;
    fs::rename(file, folder_.path() + "/elsewhere");
    fs::create_symlink(folder_.path() + "/elsewhere", file);  // the same bytes
    expect_fallback(name);
    fs::remove(file);
    fs::create_directory(file);
    expect_fallback(name);
    fs::remove(file);
    ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
    expect_fallback(name);
    fs::remove(file);
    fs::rename(folder_.path() + "/elsewhere", file);
  }
  EXPECT_EQ(find(folder_).checkpoint->folder, path_);
}

TEST_F(Damage, EveryFlippedBitIsRefused) {
  Draws draws(5);
  for (int trial = 0; trial < 400; ++trial) {
    auto file = good_.begin();
    std::advance(file, draws.below(int64_t(good_.size())));
    std::string bytes = file->second;
    const int64_t bit = draws.below(int64_t(bytes.size()) * 8);
    bytes[bit / 8] = char(bytes[bit / 8] ^ (1 << bit % 8));
    spit(path_ + "/" + file->first, bytes);
    SCOPED_TRACE(file->first + " bit " + std::to_string(bit));
    expect_fallback(file->first);
    if (HasFatalFailure()) return;
    restore(file->first);
  }
}

// A file that changes after it was verified: what is loaded is right or refused.
TEST_F(Damage, LoadingAloneNeverGivesWrongValues) {
  const Manifest manifest = read_manifest(path_);
  Draws draws(6);
  int refused = 0;
  for (int trial = 0; trial < 300; ++trial) {
    const StoredFile& file = manifest.files[draws.below(int64_t(manifest.files.size()))];
    std::string bytes = good_.at(file.name);
    const int64_t bit = draws.below(int64_t(bytes.size()) * 8);
    bytes[bit / 8] = char(bytes[bit / 8] ^ (1 << bit % 8));
    spit(path_ + "/" + file.name, bytes);
    try {
      EXPECT_TRUE(same_bytes(load_whole(path_, newer_), newer_)) << file.name << " bit " << bit;
    } catch (const DataError& error) {
      EXPECT_TRUE(contains(error.what(), file.name)) << error.what();
      refused += 1;
    }
    restore(file.name);
  }
  EXPECT_GT(refused, 30);
}

// Good files, but elements that are not those of the manifest.
TEST_F(Damage, PiecesOfOtherValuesAreRefused) {
  const std::vector<TensorSink> sinks = [&] {
    std::vector<TensorSink> all;
    for (TestTensor& tensor : newer_) {
      all.push_back(
          {tensor.name, tensor.dtype, tensor.dims, whole_region(tensor.dims), tensor.bytes.data()});
    }
    return all;
  }();
  Manifest manifest = read_manifest(path_);
  StoredPiece* first = nullptr;  // two pieces of a file that hold equally many elements
  StoredPiece* second = nullptr;
  for (StoredTensor& one : manifest.tensors) {
    for (StoredTensor& other : manifest.tensors) {
      StoredPiece& a = one.pieces[0];
      StoredPiece& b = other.pieces[0];
      if (first == nullptr && &a != &b && a.file == "optim-0.h5" && b.file == a.file &&
          one.dtype == other.dtype && a.region.count() == b.region.count() && a.hash != b.hash) {
        first = &a;
        second = &b;
      }
    }
  }
  ASSERT_NE(first, nullptr);
  std::swap(first->dataset, second->dataset);
  const std::string message = error_of([&] { load_checkpoint(path_, manifest, sinks); });
  EXPECT_TRUE(contains(message, path_ + "/optim-0.h5: tensor ")) << message;
  EXPECT_TRUE(contains(message, "expected XXH3 ")) << message;
}

TEST_F(Damage, AMessageNamesFileTensorAndBothHashes) {
  std::string bytes = good_.at("model-1.h5");
  const size_t place = bytes.find(newer_[9].bytes.substr(newer_[9].bytes.size() - 8));
  ASSERT_NE(place, std::string::npos);  // inside a tensor that rank 1 holds
  bytes[place] = char(bytes[place] ^ 4);
  spit(path_ + "/model-1.h5", bytes);
  const std::string warning = find(folder_).warnings.at(0);
  const Manifest manifest = read_manifest(path_);
  const auto file =
      std::find_if(manifest.files.begin(), manifest.files.end(),
                   [](const StoredFile& candidate) { return candidate.name == "model-1.h5"; });
  EXPECT_TRUE(contains(warning, path_ + "/model-1.h5: expected XXH3 " + file->hash + ", got "))
      << warning;
  EXPECT_TRUE(contains(warning, "it holds tensor branches.0.mamba2.in_proj.weight [")) << warning;
}

TEST_F(Damage, AllDamagedIsAnErrorNotAFreshStart) {
  for (const char* step : {"step-00000010", "step-00000020"})
    fs::resize_file(folder_.path() + "/" + step + "/optim-1.h5", 100);
  const std::string message = error_of([&] { find(folder_); });
  EXPECT_TRUE(contains(message, "no good checkpoint is left")) << message;
  EXPECT_TRUE(contains(message, "step-00000010/optim-1.h5")) << message;
  EXPECT_TRUE(contains(message, "step-00000020/optim-1.h5")) << message;
}

TEST_F(Damage, OnlyWholeNamesAreCheckpoints) {
  for (const char* name : {"step-00000030.bak", "xstep-00000030", "step-0000030", "step-000000030",
                           "step-0000003a", ".step-00000030.test-1.tmp"})
    fs::copy(path_, folder_.path() + "/" + name);
  spit(folder_.path() + "/step-00000040", "a file");
  spit(folder_.path() + "/latest", "step-00000040\n");  // a hint, not asked
  EXPECT_EQ(find(folder_).checkpoint->folder, path_);
}

TEST_F(Damage, AnOlderCheckpointUnderANewerNameIsRefused) {
  fs::copy(folder_.path() + "/step-00000010", folder_.path() + "/step-00000030");
  const FoundCheckpoint found = find(folder_);
  EXPECT_EQ(found.checkpoint->folder, path_);
  EXPECT_TRUE(contains(found.warnings.at(0), "expected step 30, got 10")) << found.warnings[0];
}

TEST_F(Damage, RanksAgreeOnWhatIsGood) {
  for (const StoredFile& file : read_manifest(path_).files) {  // each is checked by another rank
    spit(path_ + "/" + file.name, "short");
    std::mutex mutex;
    std::vector<std::string> seen;
    run_ranks(3, [&](Communicator& comm) {
      CommunicatorPeers peers(comm);
      const FoundCheckpoint found = find_checkpoint(folder_, peers);
      const std::lock_guard lock(mutex);
      seen.push_back(found.checkpoint->folder + found.warnings.at(0));
    });
    ASSERT_EQ(seen.size(), 3u);
    EXPECT_EQ(seen[0], seen[1]);
    EXPECT_EQ(seen[0], seen[2]);
    EXPECT_TRUE(contains(seen[0], file.name));
    restore(file.name);
  }
}

TEST(NoCheckpoint, IsNoError) {
  const TempFolder folder;
  EXPECT_FALSE(find(folder).checkpoint.has_value());
  EXPECT_FALSE(find(folder.path() + "/absent").checkpoint.has_value());
}

}  // namespace
}  // namespace sluice::test
