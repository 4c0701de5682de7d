// What a training step needs of memory on one rank, by running the same code with counting arenas.
//
// Counting runs have no memory, so they must not reach other ranks: their models are built with
// planned groups (parallel/planned_communicator.h), or with none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/core/context.h"
#include "layers/model.h"
#include "parallel/mesh.h"

namespace sluice {

struct ArenaPeaks {
  size_t saved = 0;    // bytes
  size_t scratch = 0;  // bytes
};

// The groups of a mesh that a model's layers talk to.
LayerGroups layer_groups(const Mesh& mesh);

// A model as rank `rank` of a mesh has it, without memory and without the other ranks. What it
// would exchange is counted by the groups of mesh().
class PlannedModel {
 public:
  // build.groups are given by the mesh.
  PlannedModel(const ModelConfig& config, const ModelBuild& build, DType dtype,
               const MeshShape& shape, int rank);

  const Mesh& mesh() const { return mesh_; }
  ParameterStore& store() { return store_; }
  const ParameterStore& store() const { return store_; }
  const Model& model() const { return model_; }

  // Peaks of Model::train (and Model::evaluate) at B rows, cut over the sequence ranks.
  ArenaPeaks count_training(int64_t B, int64_t row_tokens) const;

 private:
  Mesh mesh_;
  ParameterStore store_;
  Model model_;
};

// Of models without groups: B rows of T tokens.
ArenaPeaks count_training(const Model& model, int64_t B, int64_t T);
ArenaPeaks count_evaluation(const Model& model, int64_t B, int64_t T);
ArenaPeaks count_logits(const Model& model, int64_t B, int64_t T);
// Of Model::step, at the first and the last of so many tokens.
ArenaPeaks count_step(const Model& model, int64_t B, int64_t max_tokens);

// The two arenas of a rank and the context over them.
class StepArenas {
 public:
  explicit StepArenas(const ArenaPeaks& peaks, const Place& place = {})
      : place_(place),
        saved_("saved", peaks.saved, place.device),
        scratch_("scratch", peaks.scratch, place.device) {}
  // Without memory: for runs that find the peaks.
  explicit StepArenas(const Place& place = {})
      : place_(place),
        saved_(Arena::counting("saved", place.device)),
        scratch_(Arena::counting("scratch", place.device)) {}

  ArenaPeaks peaks() const { return {saved_.peak(), scratch_.peak()}; }
  ArenaPeaks capacities() const { return {saved_.capacity(), scratch_.capacity()}; }
  Context context() const {
    return {.device = place_.device,
            .stream = place_.stream,
            .saved = &saved_,
            .scratch = &scratch_,
            .rng = {}};
  }

 private:
  Place place_;
  mutable Arena saved_;  // a context lends them out
  mutable Arena scratch_;
};

}  // namespace sluice
