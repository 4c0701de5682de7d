// A few steps of a reduced model on one layout, and what came of them.
#pragma once

#include <string>
#include <vector>

#include "layers/routing_tape.h"
#include "parallel/mesh.h"
#include "trainer/config.h"
#include "trainer/verify/synthetic_rows.h"

namespace sluice {

inline constexpr int kVerifiedSteps = 3;

// Of a whole parameter, gathered from the ranks that hold its parts.
struct WholeTensor {
  std::string name;
  std::vector<double> values;
};

struct LayoutTrace {
  std::vector<double> losses;           // per step: cross-entropy
  std::vector<double> auxiliary;        // per step: balance and z-loss
  std::vector<double> grad_norms;       // per step
  std::vector<WholeTensor> gradients;   // of the first step
  std::vector<WholeTensor> parameters;  // after all steps
  bool replicas_equal = true;           // ranks that hold the same parameters hold equal bits
  int64_t choices = 0;                  // of experts, by this world's tokens in the first step
  int64_t flipped = 0;                  // of these, other than the reference's
};

struct LayoutRun {
  const Config& config;  // reduced; parallel.zero counts
  DType dtype = DType::f64;
  int steps = kVerifiedSteps;
  RoutingTape* routing = nullptr;         // of the first step: dictates or records; optional
  const RoutingTape* expected = nullptr;  // what the first step's own choices are compared with
  // Of a GPU: where the model runs, and the world's ranks in its memory.
  Place place = {};
  Communicator* device_world = nullptr;
};

// Collective over the world; equal on all ranks. Throws UsageError where the model cannot have the
// layout.
LayoutTrace trace_layout(Communicator& world, const MeshShape& shape, const LayoutRun& run);

SyntheticRows synthetic_rows(const Config& reduced);

}  // namespace sluice
