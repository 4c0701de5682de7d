// `sluice verify`: the backward of every kind of layer against finite differences, and every
// layout of the ranks that are there against one rank. On GPUs that is one GPU, in f32; what is
// done in f64 stays on the CPU.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/world.h"
#include "trainer/config.h"
#include "trainer/verify/gradient_check.h"
#include "trainer/verify/layout_trace.h"

namespace sluice {

// Of one layout, the largest difference from one rank.
struct Difference {
  std::string quantity;  // "loss", "gradients", "parameters", "choices", "replicas"
  double error = 0;      // |a - b| / max(|b|, 1e-6 |all|), norms of a tensor; or a count
  double tolerance = 0;
  std::string where;  // the parameter, or step, with the largest error

  bool holds() const { return error <= tolerance; }  // not where it is NaN
};

struct LayoutCheck {
  MeshShape mesh;
  int zero = 0;
  DType dtype = DType::f64;
  Device::Kind device = Device::Kind::cpu;
  std::string skipped;  // why, if it was
  std::vector<Difference> differences;

  bool holds() const;
};

struct Verification {
  std::string stack;  // of the reduced model: letters
  double gradient_tolerance = 0;
  std::vector<KindCheck> kinds;
  std::vector<LayoutCheck> layouts;
  double seconds = 0;

  bool holds() const;
};

struct VerifyScope {
  std::vector<int> thread_worlds = {1, 2, 4, 8};        // ranks, where no launcher has started any
  std::function<void(const LayoutCheck&)> report = {};  // told of each layout, on rank 0
  // Where the f32 runs are, if on GPUs, and the world's ranks in their memory.
  Place place = {};
  Communicator* device_world = nullptr;
};

// Collective; equal on all ranks.
Verification verify(const Config& config, World& world, const VerifyScope& scope = {});

// A layout's steps against those of one rank, within `tolerance`: losses, gradients, parameters,
// choices, replicas, as far as they were traced.
std::vector<Difference> compare_traces(const LayoutTrace& got, const LayoutTrace& one_rank,
                                       double tolerance);

nlohmann::json to_json(const Verification& verification);
// The table, line by line as it comes.
std::string describe_kinds(const Verification& verification);
std::string describe_layout(const LayoutCheck& check);
std::string layout_table_head();

}  // namespace sluice
