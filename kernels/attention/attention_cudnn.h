// Attention by cuDNN's fused kernels, where the library can be loaded and takes the arguments:
// bf16, whole rows (as many keys as queries, query 0 at key 0), head dims up to 128 that 8 divides,
// any window and documents. Its sums have a fixed order too. Needs cuDNN's headers to build
// (attention_cudnn_absent.cpp stands in), and its library only once it is asked for.
//
// Plans are built and kept for each shape by the calling thread, in seconds: ask for the scratch
// bytes at the start, as a counting run does, and never while a graph is captured.
#pragma once

#include <optional>
#include <string>

#include "kernels/attention/attention.h"

namespace sluice::cuda {

// Scratch of one call; nothing if cuDNN does not take it, and then our own kernels do.
std::optional<int64_t> cudnn_scratch_bytes(Device device, const AttentionForward& args);
std::optional<int64_t> cudnn_scratch_bytes(Device device, const AttentionBackward& args);

// With as many bytes of scratch.
void attention_forward_cudnn(const Context& ctx, const AttentionForward& args,
                             const TensorView& scratch);
void attention_backward_cudnn(const Context& ctx, const AttentionBackward& args,
                              const TensorView& scratch);

// Why cuDNN cannot be used on this device at all; empty if it can.
std::string why_no_cudnn(Device device);
// "9.19.0", or "none": of the library that is found now.
std::string cudnn_version();
// What the build has: "9.19.0, loaded when asked for", or "none".
std::string cudnn_support();

}  // namespace sluice::cuda
