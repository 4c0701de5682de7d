// Tensors and simulated ranks for the tests of checkpoints.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/core/rng.h"
#include "parallel/thread_communicator.h"
#include "tests/support/temp_folder.h"
#include "trainer/checkpoint/folders.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/checkpoint/verify.h"
#include "trainer/checkpoint/writer.h"

namespace sluice::test {

namespace fs = std::filesystem;

// The part of `pieces` that falls to one of `num_ranks` ranks that all hold the same: of each kind
// a contiguous share of all elements, cut anywhere. The shares of all ranks are everything, once.
inline std::vector<LocalPiece> share_of(const std::vector<LocalPiece>& pieces, int rank,
                                        int num_ranks) {
  std::vector<LocalPiece> share;
  for (const TensorKind kind : {TensorKind::model, TensorKind::optim}) {
    int64_t total = 0;
    for (const LocalPiece& piece : pieces) total += piece.kind == kind ? piece.region.count() : 0;
    const Slice slice = slice_of(total, num_ranks, rank);
    int64_t position = 0;  // of the piece, among all elements of the kind
    for (const LocalPiece& piece : pieces) {
      if (piece.kind != kind) continue;
      const int64_t first = std::max<int64_t>(slice.begin - position, 0);
      const int64_t stop = std::min(slice.end - position, piece.region.count());
      if (first < stop) {
        share.push_back(piece);
        Region& region = share.back().region;
        region.end = region.begin + stop;
        region.begin += first;
        share.back().data =
            static_cast<const char*>(piece.data) + first * int64_t(size_of(piece.dtype));
      }
      position += piece.region.count();
    }
  }
  return share;
}

inline void spit(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Everything in a folder: name -> bytes.
inline std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = fs::relative(entry.path(), folder).string();
    files[name] = entry.is_regular_file() ? read_text(entry.path().string()) : "folder";
  }
  return files;
}

// Draws that depend on their order alone.
class Draws {
 public:
  explicit Draws(uint64_t seed) : key_{.seed = seed, .stream = hash_name("checkpoint tests")} {}
  int64_t below(int64_t bound) { return int64_t(random_below(key_, next_++, uint64_t(bound))); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }

 private:
  RngKey key_;
  uint64_t next_ = 0;
};

struct TestTensor {
  std::string name = {};
  TensorKind kind = TensorKind::model;
  DType dtype = DType::f32;
  Dims dims;
  std::vector<ParameterPart> parts = {};
  std::string bytes = {};  // any bit patterns, NaNs among them
};

using TestTensors = std::vector<TestTensor>;

inline TestTensor make_tensor(std::string name, TensorKind kind, DType dtype, const Dims& dims,
                              uint64_t seed) {
  TestTensor tensor{.name = std::move(name), .kind = kind, .dtype = dtype, .dims = dims};
  Draws draws(seed ^ hash_name(tensor.name));
  tensor.bytes.resize(dims.numel() * size_of(dtype));
  for (char& byte : tensor.bytes) byte = char(draws.below(256));
  return tensor;
}

// A small model: a vector, odd matrices, a stack of experts, one element, f64, and its moments.
inline TestTensors small_model(uint64_t seed) {
  TestTensors tensors;
  const auto add = [&](const std::string& name, DType dtype, const Dims& dims) {
    tensors.push_back(make_tensor(name, TensorKind::model, dtype, dims, seed));
    for (const char* moment : {"exp_avg/", "exp_avg_sq/"})
      tensors.push_back(make_tensor(moment + name, TensorKind::optim, dtype, dims, seed));
  };
  add("embedding.weight", DType::f32, {37, 8});
  add("branches.0.norm.weight", DType::f32, {8});
  add("branches.0.mamba2.in_proj.weight", DType::f32, {19, 8});
  tensors[6].parts = {{.name = "z", .rows = 8}, {.name = "x", .rows = 11}};
  add("branches.1.moe.experts.up", DType::f32, {4, 5, 8});
  add("branches.1.scale", DType::f64, {1});
  return tensors;
}

inline std::vector<LocalPiece> whole_pieces(const TestTensors& tensors) {
  std::vector<LocalPiece> pieces;
  for (const TestTensor& tensor : tensors) {
    pieces.push_back({.name = tensor.name,
                      .kind = tensor.kind,
                      .dtype = tensor.dtype,
                      .dims = tensor.dims,
                      .parts = tensor.parts,
                      .region = whole_region(tensor.dims),
                      .data = tensor.bytes.data()});
  }
  return pieces;
}

inline TrainingState state_at(int64_t step) {
  TrainingState state;
  state.step = step;
  state.sluice_version = "0.1.0";
  state.git = "abc1234";
  state.config = "model:\n  d_model: 8\n";
  state.mesh = {{"dp", 2}, {"ep", 1}, {"cp", 1}};
  state.world_size = 2;
  state.data = {{"files", {{{"id", 0}, {"hash", "00ff"}}}}, {"seed", 7}, {"next_step", step}};
  state.rng_seed = 0xfedcba9876543210u;
  state.rng_step = step;
  state.optimizer_t = step - 1;
  state.runtime = {
      .threads = 2, .blas = "openblas", .blas_version = "0.3.21", .isa = "avx512", .device = "cpu"};
  state.loss = 2.0 / 3.0;
  return state;
}

inline CheckpointWriterOptions options_for(const std::string& folder) {
  CheckpointWriterOptions options;
  options.folder = folder;
  options.run_id = "test-1";
  return options;
}

// Saves from `num_ranks` threads that hold the same tensors and share the work.
inline SaveResult save_with(const CheckpointWriterOptions& options, int64_t step,
                            const TestTensors& tensors, int num_ranks = 1) {
  SaveResult result;
  run_ranks(num_ranks, [&](Communicator& comm) {
    CommunicatorPeers peers(comm);
    CheckpointWriter writer(options, peers);
    const SaveResult mine =
        writer.save(state_at(step), share_of(whole_pieces(tensors), comm.rank(), comm.size()));
    if (comm.rank() == 0) result = mine;
  });
  return result;
}

inline std::string save(const std::string& folder, int64_t step, const TestTensors& tensors,
                        int num_ranks = 1) {
  const SaveResult result = save_with(options_for(folder), step, tensors, num_ranks);
  EXPECT_TRUE(result.saved) << result.problem;
  return result.folder;
}

// Loads all of it on one rank.
inline TestTensors load_whole(const std::string& folder, const TestTensors& like,
                              LoadScope scope = LoadScope::all) {
  TestTensors loaded = like;
  std::vector<TensorSink> sinks;
  for (TestTensor& tensor : loaded) {
    std::memset(tensor.bytes.data(), 0x5a, tensor.bytes.size());
    if (scope == LoadScope::model_only && tensor.kind == TensorKind::optim) continue;
    sinks.push_back({.name = tensor.name,
                     .dtype = tensor.dtype,
                     .dims = tensor.dims,
                     .region = whole_region(tensor.dims),
                     .data = tensor.bytes.data()});
  }
  load_checkpoint(folder, read_manifest(folder), sinks, scope);
  return loaded;
}

inline bool same_bytes(const TestTensors& a, const TestTensors& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const TestTensor& x, const TestTensor& y) { return x.bytes == y.bytes; });
}

inline FoundCheckpoint find(const std::string& folder) {
  SelfPeers self;
  return find_checkpoint(folder, self);
}

// The message of the Error that `work` throws; "" and a failure if it throws none.
inline std::string error_of(const std::function<void()>& work, ExitCode code = ExitCode::data) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_EQ(int(error.code()), int(code)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace sluice::test
