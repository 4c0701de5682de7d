#include "trainer/carried_states.h"

#include "kernels/core/device_memory.h"

namespace sluice {

CarriedStates::CarriedStates(const Model& model, int64_t num_batches, int64_t rows, Device device,
                             bool allocate)
    : num_batches_(num_batches), device_(device) {
  const size_t num_branches = model.branches().size();
  for (size_t branch = 0; branch < num_branches; ++branch) {
    for (StateTensor& spec : model.branch_state_spec(branch, rows)) {
      states_.push_back({.name = spec.name, .branch = branch, .of_batch = spec, .offset = bytes_});
      bytes_ += int64_t(align_up(num_batches * spec.dims.numel() * size_of(spec.dtype)));
    }
  }
  if (allocate) storage_ = Buffer(2 * bytes_, device);
  for (const int half : {0, 1}) {
    for (int64_t batch = 0; batch < num_batches; ++batch) {
      std::vector<Carried> branches(num_branches);
      for (const State& state : states_) {
        branches[state.branch].incoming.push_back(view(state, half, batch, 1));
        branches[state.branch].outgoing.push_back(view(state, 1 - half, batch, 1));
      }
      carried_[half].push_back(std::move(branches));
    }
  }
}

TensorView CarriedStates::view(const State& state, int half, int64_t first_batch,
                               int64_t num_batches) const {
  const StateTensor& spec = state.of_batch;
  Dims dims = spec.dims;
  dims.size[0] *= num_batches;
  const int64_t batch_bytes = spec.dims.numel() * int64_t(size_of(spec.dtype));
  char* const data = static_cast<char*>(storage_.data());
  return TensorView(
      data == nullptr ? nullptr : data + half * bytes_ + state.offset + first_batch * batch_bytes,
      dims, spec.dtype, device_);
}

void CarriedStates::end_step(bool finite) {
  current_ = 1 - current_;
  if (finite || storage_.data() == nullptr) return;
  const OwnedStream stream(device_);  // the step is over: nobody else uses the states
  zero_bytes(static_cast<char*>(storage_.data()) + current_ * bytes_, device_, bytes_, stream);
  Stream(stream).sync();
}

std::vector<CarriedStates::Named> CarriedStates::incoming() const {
  std::vector<Named> all;
  for (const State& state : states_)
    all.push_back({state.name, view(state, current_, 0, num_batches_)});
  return all;
}

}  // namespace sluice
