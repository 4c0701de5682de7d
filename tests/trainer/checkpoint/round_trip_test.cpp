// Any layout to any layout, bit for bit.
#include <cmath>
#include <deque>

#include "tests/trainer/checkpoint/checkpoint_support.h"

namespace sluice::test {
namespace {

// Loads on `num_ranks` ranks, each a slice of every tensor, and puts the slices together.
TestTensors load_sliced(const std::string& folder, const TestTensors& like, int num_ranks) {
  TestTensors whole = like;
  for (TestTensor& tensor : whole) std::memset(tensor.bytes.data(), 0x5a, tensor.bytes.size());
  run_ranks(num_ranks, [&](Communicator& comm) {
    CommunicatorPeers peers(comm);
    const VerifiedCheckpoint checkpoint = verify_checkpoint(folder, peers);
    std::vector<TensorSink> sinks;
    for (TestTensor& tensor : whole) {
      const Slice slice = slice_of(tensor.dims.numel(), comm.size(), comm.rank());
      sinks.push_back({.name = tensor.name,
                       .dtype = tensor.dtype,
                       .dims = tensor.dims,
                       .region = flat_region(tensor.dims, slice.begin, slice.end),
                       .data = tensor.bytes.data() + slice.begin * size_of(tensor.dtype)});
    }
    load_checkpoint(folder, checkpoint.manifest, sinks);
  });
  return whole;
}

class Layouts : public ::testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(Layouts, KeepEveryBit) {
  const auto [saving, loading] = GetParam();
  const TempFolder folder;
  const TestTensors tensors = small_model(3);
  const std::string saved = save(folder, 1000, tensors, saving);
  EXPECT_EQ(saved, folder.path() + "/step-00001000");
  EXPECT_TRUE(same_bytes(load_sliced(saved, tensors, loading), tensors));
}

INSTANTIATE_TEST_SUITE_P(Checkpoint, Layouts,
                         ::testing::Combine(::testing::Values(1, 2, 3),
                                            ::testing::Values(1, 2, 4)));

TEST(Checkpoint, KeepsTheTrainingState) {
  const TempFolder folder;
  const TrainingState expected = state_at(1000);
  const TrainingState state = read_manifest(save(folder, 1000, small_model(3))).state;
  EXPECT_EQ(state.step, 1000);
  EXPECT_EQ(state.config, expected.config);
  EXPECT_EQ(state.sluice_version, expected.sluice_version);
  EXPECT_EQ(state.git, expected.git);
  EXPECT_EQ(state.mesh, expected.mesh);
  EXPECT_EQ(state.world_size, expected.world_size);
  EXPECT_EQ(state.data, expected.data);
  EXPECT_EQ(state.rng_seed, expected.rng_seed);
  EXPECT_EQ(state.rng_step, expected.rng_step);
  EXPECT_EQ(state.optimizer_t, expected.optimizer_t);
  EXPECT_EQ(state.runtime, expected.runtime);
  EXPECT_EQ(state.loss, expected.loss);  // exactly
}

TEST(Checkpoint, KeepsLossesThatAreNoNumbers) {
  Manifest manifest;
  manifest.state = state_at(1);
  const auto kept = [&](double loss) {
    manifest.state.loss = loss;
    return parse_manifest(to_text(manifest), "manifest").state.loss;
  };
  EXPECT_TRUE(std::isnan(kept(NAN)));
  EXPECT_EQ(kept(INFINITY), INFINITY);
  EXPECT_EQ(kept(-INFINITY), -INFINITY);
  EXPECT_EQ(kept(5e-324), 5e-324);
  EXPECT_TRUE(std::signbit(kept(-0.0)));
}

TEST(Checkpoint, KeepsThePartsOfPackedProjections) {
  const TempFolder folder;
  const Manifest manifest = read_manifest(save(folder, 1, small_model(3), 3));
  const auto found = std::find_if(
      manifest.tensors.begin(), manifest.tensors.end(),
      [](const StoredTensor& tensor) { return tensor.name == "branches.0.mamba2.in_proj.weight"; });
  ASSERT_NE(found, manifest.tensors.end());
  ASSERT_EQ(found->parts.size(), 2u);
  EXPECT_EQ(found->parts[1].name, "x");
  EXPECT_EQ(found->parts[1].rows, 11);
}

TEST(Checkpoint, RanksShareTheWorkAndCutInsideTensors) {
  const TestTensors tensors = small_model(3);
  const std::vector<LocalPiece> whole = whole_pieces(tensors);
  int64_t least = INT64_MAX;
  int64_t most = 0;
  bool cut_inside = false;
  for (int rank = 0; rank < 3; ++rank) {
    int64_t elements = 0;
    for (const LocalPiece& piece : share_of(whole, rank, 3)) {
      elements += piece.region.count();
      cut_inside |= piece.region.begin % 8 != 0;
    }
    least = std::min(least, elements);
    most = std::max(most, elements);
  }
  EXPECT_LE(most - least, 2);  // one element a kind
  EXPECT_TRUE(cut_inside);
}

TEST(Checkpoint, LargeSharesGoToSeveralFiles) {
  const TempFolder folder;
  const TestTensors tensors = small_model(3);
  CheckpointWriterOptions options = options_for(folder);
  options.max_file_bytes = 500;
  const SaveResult result = save_with(options, 1, tensors, 2);
  ASSERT_TRUE(result.saved) << result.problem;
  int64_t bytes = 0;
  const Manifest manifest = read_manifest(result.folder);
  EXPECT_GT(manifest.files.size(), 10u);
  for (const StoredFile& file : manifest.files) bytes += file.bytes;
  EXPECT_EQ(result.bytes, bytes);
  EXPECT_TRUE(same_bytes(load_sliced(result.folder, tensors, 3), tensors));
}

TEST(Checkpoint, EqualStateGivesEqualBytes) {
  const TempFolder one;
  const TempFolder two;
  const TestTensors tensors = small_model(3);
  EXPECT_EQ(contents(save(one, 7, tensors, 2)), contents(save(two, 7, tensors, 2)));
}

// Cuts a box of the tensor's index space at random until it is small, and deals the parts out.
void cut_randomly(const Dims& dims, Region box, Draws& draws, std::vector<Region>& out) {
  const int dim = dims.rank == 0 ? 0 : int(draws.below(dims.rank));
  const bool divisible = dims.rank > 0 && box.size[dim] > 1;
  if (divisible && draws.below(3) > 0) {
    Region rest = box;
    const int64_t first = draws.between(1, box.size[dim] - 1);
    box.size.size[dim] = first;
    rest.start.size[dim] += first;
    rest.size.size[dim] -= first;
    cut_randomly(dims, box, draws, out);
    cut_randomly(dims, rest, draws, out);
    return;
  }
  // The box's elements, in up to three ranges.
  int64_t begin = 0;
  for (int64_t left = box.size.numel(); left > 0; left = box.size.numel() - begin) {
    box.begin = begin;
    box.end = draws.below(2) == 0 ? begin + left : begin + draws.between(1, left);
    out.push_back(box);
    begin = box.end;
  }
}

std::vector<Region> random_regions(const Dims& dims, Draws& draws) {
  Region whole = whole_region(dims);
  std::vector<Region> regions;
  cut_randomly(dims, whole, draws, regions);
  return regions;
}

std::string gather_elements(const TestTensor& tensor, const Region& region) {
  const int64_t size = int64_t(size_of(tensor.dtype));
  std::string bytes;
  for (const Run& run : runs_of(tensor.dims, region))
    bytes += tensor.bytes.substr(run.tensor * size, run.count * size);
  return bytes;
}

TestTensors random_tensors(Draws& draws) {
  constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::i64, DType::u16, DType::u8};
  TestTensors tensors;
  const int64_t count = draws.between(1, 5);
  for (int64_t index = 0; index < count; ++index) {
    Dims dims;
    dims.rank = int(draws.below(4));
    for (int dim = 0; dim < dims.rank; ++dim) dims.size[dim] = draws.between(1, 7);
    tensors.push_back(make_tensor("t" + std::to_string(index), TensorKind(draws.below(2)),
                                  kDTypes[draws.below(5)], dims, uint64_t(draws.below(1000))));
  }
  return tensors;
}

// Pieces of any shape on any rank, loaded into regions of any shape.
TEST(Checkpoint, AnyPiecesLoadIntoAnyRegions) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Draws draws(seed);
    const TempFolder folder;
    const TestTensors tensors = random_tensors(draws);
    const int num_ranks = int(draws.between(1, 3));
    std::vector<std::vector<LocalPiece>> pieces(num_ranks);
    std::deque<std::string> memory;
    for (const TestTensor& tensor : tensors) {
      for (const Region& region : random_regions(tensor.dims, draws)) {
        memory.push_back(gather_elements(tensor, region));
        pieces[draws.below(num_ranks)].push_back({.name = tensor.name,
                                                  .kind = tensor.kind,
                                                  .dtype = tensor.dtype,
                                                  .dims = tensor.dims,
                                                  .region = region,
                                                  .data = memory.back().data()});
      }
    }
    std::string saved;
    run_ranks(num_ranks, [&](Communicator& comm) {
      CommunicatorPeers peers(comm);
      CheckpointWriter writer(options_for(folder), peers);
      const SaveResult result = writer.save(state_at(5), pieces[comm.rank()]);
      EXPECT_TRUE(result.saved) << result.problem;
      if (comm.rank() == 0) saved = result.folder;
    });

    std::vector<TensorSink> sinks;
    std::deque<std::string> loaded;
    std::deque<std::string> expected;
    for (const TestTensor& tensor : tensors) {
      for (const Region& region : random_regions(tensor.dims, draws)) {
        expected.push_back(gather_elements(tensor, region));
        loaded.push_back(std::string(expected.back().size(), '\x5a'));
        sinks.push_back({.name = tensor.name,
                         .dtype = tensor.dtype,
                         .dims = tensor.dims,
                         .region = region,
                         .data = loaded.back().data()});
      }
    }
    load_checkpoint(saved, read_manifest(saved), sinks);
    ASSERT_EQ(loaded, expected) << "seed " << seed;
  }
}

TEST(Checkpoint, WeightsLoadWithoutTheOptimizersState) {
  const TempFolder folder;
  const TestTensors tensors = small_model(3);
  const std::string saved = save(folder, 1, tensors, 2);
  const TestTensors loaded = load_whole(saved, tensors, LoadScope::model_only);
  for (size_t index = 0; index < tensors.size(); ++index) {
    EXPECT_EQ(loaded[index].bytes == tensors[index].bytes,
              tensors[index].kind == TensorKind::model);
  }
}

TEST(Checkpoint, ListsWhatDoesNotMatchTheModel) {
  const TempFolder folder;
  const TestTensors tensors = small_model(3);
  const std::string saved = save(folder, 1, tensors);
  TestTensors wanted = tensors;
  wanted[0].name = "embeding.weight";
  wanted[3].dims = {4, 2};
  wanted[6].dtype = DType::i32;
  const std::string message = error_of([&] { load_whole(saved, wanted); });
  EXPECT_TRUE(contains(message,
                       "missing in the checkpoint (1): embeding.weight (is it "
                       "embedding.weight?)"))
      << message;
  EXPECT_TRUE(contains(message, "not in the model (1): embedding.weight")) << message;
  EXPECT_TRUE(contains(message, "branches.0.norm.weight: checkpoint f32 (8), model f32 (4, 2)"))
      << message;
  EXPECT_TRUE(contains(message,
                       "branches.0.mamba2.in_proj.weight: checkpoint f32 (19, 8), model "
                       "i32 (19, 8)"))
      << message;
}

TEST(Checkpoint, RefusesToCommitPiecesWithAHole) {
  const TempFolder folder;
  const TestTensors tensors = small_model(3);
  std::vector<LocalPiece> pieces = whole_pieces(tensors);
  pieces[0].region.end -= 1;
  SelfPeers self;
  CheckpointWriter writer(options_for(folder), self);
  const std::string message = error_of([&] { writer.save(state_at(1), pieces); }, ExitCode::bug);
  EXPECT_TRUE(contains(message, "element 295 of 296 is stored nowhere")) << message;
  EXPECT_TRUE(contents(folder).empty());
}

}  // namespace
}  // namespace sluice::test
