// What a run will need, from the code that runs: parameters, FLOPs, memory, bytes on the wire.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "parallel/mesh.h"
#include "trainer/config.h"

namespace sluice {

struct Plan {
  MeshShape mesh;
  int64_t total_params = 0;
  int64_t active_params = 0;               // a token goes through: of k of X experts
  std::map<std::string, int64_t> by_kind;  // "embedding", "mamba2", ..., "norm", "head"
  double flops_per_token = 0;              // forward and backward
  // Bytes on one rank.
  int64_t values = 0;
  int64_t gradients = 0;  // all accumulation buffers
  int64_t optimizer = 0;
  int64_t saved = 0;  // activations kept for the backward
  int64_t scratch = 0;
  int64_t carried = 0;    // states from step to step
  int64_t available = 0;  // of this machine's memory, shared by the ranks on it
  // Sent in a step by the rank that sends most, by the axes of the group ("cp", "ep", "dp",
  // "dp+cp", "edp", ...): exact, but for tokens on their way to experts (ep), which are taken as
  // evenly loaded; bounded above by wire_bytes_bound.
  std::map<std::string, int64_t> wire_bytes_per_step;
  std::map<std::string, int64_t> wire_bytes_bound;
  std::vector<std::string> exchanges;  // what branches chose, where there is a choice
  std::vector<std::string> kernels;    // what runs slowly or by a library, with its branches
  // What train.reproducible: layout costs on a GPU, and where it cannot keep its promise. Empty: it
  // is not asked for, or costs nothing.
  std::string reproducible;
  int64_t checkpoint_bytes = 0;
  std::string stack;   // letters
  std::string remedy;  // the nearest, where it does not fit

  int64_t memory() const { return values + gradients + optimizer + saved + scratch + carried; }
  bool fits() const { return memory() <= available; }
};

// What a parameter belongs to: "branches.3.mamba2.A_log" -> "mamba2"; the norm before a branch ->
// "norm"; "embedding.weight" -> "embedding".
std::string parameter_kind(const std::string& name);

// Allocates nothing. Throws UsageError for an impossible mesh or batch.
Plan make_plan(const Config& config, int world);
// The same for a rank whose memory holds so many bytes.
Plan make_plan(const Config& config, int world, int64_t available);

// Before a run allocates on a GPU: its plan for what is free there. Throws UsageError if a step
// does not fit, with what it needs, what is free, and what to change.
Plan require_memory(const Config& config, int world, Device device);
void require_fit(const Plan& plan, Device device, int64_t total);
nlohmann::json to_json(const Plan& plan);
std::string describe(const Plan& plan);

}  // namespace sluice
