// Checkpoints of engines: saved by one layout, loaded by another, the tensors are the same.
#include "trainer/engine_state.h"

#include <gtest/gtest.h>

#include "tests/support/layouts.h"
#include "tests/support/synthetic_rows.h"
#include "tests/support/tiny_run.h"
#include "trainer/checkpoint/verify.h"
#include "trainer/checkpoint/writer.h"

namespace sluice::test {
namespace {

struct Layout {
  MeshShape mesh;
  int64_t zero = 1;
};

class EngineState : public testing::Test {
 protected:
  EngineState() : tiny_("ME-") {
    tiny_.config.train.seq_len = 8;
    tiny_.config.train.micro_batch = 1;
  }

  Config config_for(const Layout& layout) const {
    Config config = tiny_.config;
    config.parallel.zero = layout.zero;
    return config;
  }
  std::string checkpoints(const std::string& name) const {
    return tiny_.folder.path() + "/" + name;
  }

  // Two steps, then a checkpoint of each layout's state.
  void train_and_save(const Layout& layout, const std::string& name) {
    const Config config = config_for(layout);
    run_layout(layout.mesh, [&](const Mesh& mesh) {
      StepEngine engine(config, mesh);
      for (int64_t step = 0; step < 2; ++step) synthetic_step(engine, config, step);
      save(engine, name);
    });
  }
  // Loads a checkpoint into the layout and saves it again.
  void load_and_save(const Layout& layout, const std::string& from, const std::string& name) {
    const Config config = config_for(layout);
    run_layout(layout.mesh, [&](const Mesh& mesh) {
      StepEngine engine(config, mesh);
      CommunicatorPeers peers(mesh.world());
      const VerifiedCheckpoint found =
          verify_checkpoint(checkpoints(from) + "/step-00000002", peers);
      const HostState host(engine);
      load_checkpoint(found.folder, found.manifest, sinks_to_load(engine, host, LoadScope::all));
      save(engine, name);
    });
  }
  void save(const StepEngine& engine, const std::string& name) {
    CommunicatorPeers peers(engine.mesh().world());
    CheckpointWriterOptions options;
    options.folder = checkpoints(name);
    options.run_id = "test";
    CheckpointWriter writer(std::move(options), peers);
    TrainingState state;
    state.step = 2;
    const HostState host(engine);
    const SaveResult result = writer.save(state, pieces_to_save(engine, host));
    EXPECT_TRUE(result.saved) << result.problem;
  }
  // Every tensor whole, by name.
  std::map<std::string, std::vector<float>> contents(const std::string& name) const {
    const std::string folder = checkpoints(name) + "/step-00000002";
    const Manifest manifest = read_manifest(folder);
    std::map<std::string, std::vector<float>> tensors;
    std::vector<TensorSink> sinks;
    for (const StoredTensor& tensor : manifest.tensors) {
      std::vector<float>& values = tensors[tensor.name];
      values.resize(tensor.dims.numel());
      sinks.push_back(
          {tensor.name, DType::f32, tensor.dims, whole_region(tensor.dims), values.data()});
    }
    load_checkpoint(folder, manifest, sinks);
    return tensors;
  }

  TinyRun tiny_;
};

TEST_F(EngineState, AnyLayoutLoadsWhatAnyOtherSaved) {
  const Layout layouts[] = {{{.dp = 2, .ep = 2}, 1},
                            {{}, 1},
                            {{.dp = 4, .ep = 2}, 2},
                            {{.dp = 4, .ep = 1}, 0},
                            {{.dp = 3}, 1}};
  // So many micro-batches deal out over 1, 2, 3 and 4 ranks.
  tiny_.config.train.global_batch = 12;
  train_and_save(layouts[0], "0");
  const auto saved = contents("0");
  const Mesh mesh({}, 0);
  ASSERT_EQ(saved.size(), 3 * StepEngine(config_for({}), mesh).store().parameters().size());
  for (size_t i = 1; i < std::size(layouts); ++i) {
    load_and_save(layouts[i], std::to_string(i - 1), std::to_string(i));
    EXPECT_EQ(contents(std::to_string(i)), saved) << "layout " << i;
  }
  load_and_save(layouts[0], std::to_string(std::size(layouts) - 1), "back");
  EXPECT_EQ(contents("back"), saved);
}

// The same experts whoever holds them: from the start, and after steps.
TEST_F(EngineState, InitialValuesDoNotDependOnTheLayout) {
  const auto initial = [&](const Layout& layout, const std::string& name) {
    run_layout(layout.mesh,
               [&](const Mesh& mesh) { save(StepEngine(config_for(layout), mesh), name); });
    return contents(name);
  };
  const auto one = initial({}, "one");
  EXPECT_EQ(initial({{.dp = 4, .ep = 4}}, "ep"), one);
  EXPECT_EQ(initial({{.dp = 2, .ep = 2, .cp = 2}}, "cp"), one);
}

// ZeRO's saving shows in what a rank allocates.
TEST_F(EngineState, ShardedStateTakesAShareOfTheMemory) {
  std::map<int64_t, EngineMemory> by_zero;
  tiny_.config.train.global_batch = 16;
  for (const int64_t zero : {0, 1, 2}) {
    const Config config = config_for({{}, zero});
    run_layout({.dp = 4}, [&](const Mesh& mesh) {
      StepEngine engine(config, mesh);
      if (mesh.world().rank() == 0) by_zero[zero] = engine.memory();
    });
  }
  const int64_t values = by_zero[0].values;
  EXPECT_EQ(by_zero[0].optimizer, 2 * values);
  EXPECT_EQ(by_zero[1].optimizer, 2 * values / 4);
  EXPECT_EQ(by_zero[2].optimizer, 2 * values / 4);
  EXPECT_EQ(by_zero[1].gradients, 3 * values);  // 4 micro-batches
  EXPECT_EQ(by_zero[2].gradients, values + 3 * values / 4);
  // And planning says the same.
  for (const int64_t zero : {0, 1, 2}) {
    const Mesh mesh({.dp = 4}, 0);
    StepEngine engine(config_for({{}, zero}), mesh);
    engine.count_step();
    engine.count_evaluation();
    EXPECT_EQ(engine.memory().total(), by_zero[zero].total()) << "zero " << zero;
  }
}

}  // namespace
}  // namespace sluice::test
