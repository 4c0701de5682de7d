// What every row of a step hands to the same row of the next: the recurrent states of the layers,
// for documents longer than a row. A rank holds those of its own rows; ranks that share a row hold
// the same.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "layers/model.h"

namespace sluice {

class CarriedStates {
 public:
  // Of `num_batches` micro-batches of `rows` rows. Zero to begin with: rows then start afresh. With
  // allocate = false (planning) there is no memory.
  CarriedStates(const Model& model, int64_t num_batches, int64_t rows, Device device = kCpu,
                bool allocate = true);

  // For a forward of the step's i-th micro-batch: one a branch.
  std::span<const Carried> of_batch(int64_t i) const { return carried_[current_][i]; }
  // What the forwards of this step wrote is what those of the next read. States of a step that was
  // not finite are dropped: its rows start afresh, as the first ones did.
  void end_step(bool finite);

  // What the next step reads: (rows of all micro-batches in order, ...).
  struct Named {
    std::string name;  // "branches.0.mamba2.ssm"
    TensorView rows;
  };
  std::vector<Named> incoming() const;

  int64_t bytes() const { return 2 * bytes_; }

 private:
  struct State {
    std::string name;
    size_t branch = 0;
    StateTensor of_batch;
    int64_t offset = 0;  // bytes, in either half
  };
  TensorView view(const State& state, int half, int64_t first_batch, int64_t num_batches) const;

  int64_t num_batches_;
  Device device_;
  std::vector<State> states_;
  int64_t bytes_ = 0;                             // of one half
  Buffer storage_;                                // two halves: what is read and what is written
  int current_ = 0;                               // the half that is read
  std::vector<std::vector<Carried>> carried_[2];  // by the half that is read, batch and branch
};

}  // namespace sluice
