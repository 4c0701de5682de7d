// A build without cuDNN's headers.
#include "kernels/attention/attention_cudnn.h"

namespace sluice::cuda {

namespace {

constexpr const char* kAbsent = "this build has no cuDNN (its headers were not found)";

}  // namespace

std::optional<int64_t> cudnn_scratch_bytes(Device, const AttentionForward&) { return std::nullopt; }
std::optional<int64_t> cudnn_scratch_bytes(Device, const AttentionBackward&) {
  return std::nullopt;
}
void attention_forward_cudnn(const Context&, const AttentionForward&, const TensorView&) {
  throw Error(ExitCode::bug, kAbsent);
}
void attention_backward_cudnn(const Context&, const AttentionBackward&, const TensorView&) {
  throw Error(ExitCode::bug, kAbsent);
}
std::string why_no_cudnn(Device) { return kAbsent; }
std::string cudnn_version() { return "none"; }
std::string cudnn_support() { return "none"; }

}  // namespace sluice::cuda
