// A tensor's memory as the host sees it: the tensor itself where it lies on the host, a copy
// otherwise. For what happens outside steps: initial values, checkpoints, comparisons.
#pragma once

#include "kernels/core/arena.h"
#include "kernels/core/device_memory.h"

namespace sluice {

class HostCopy {
 public:
  enum class Content { read, unread };  // unread: about to be overwritten

  // Of a packed tensor; waits for the stream.
  HostCopy(const TensorView& tensor, Stream stream, Content content = Content::read)
      : tensor_(tensor), stream_(stream), view_(tensor) {
    SLUICE_CHECK(tensor.packed(), "the host copies packed tensors");
    if (tensor.device.is_cpu()) return;
    storage_ = Buffer(bytes(), kCpu);
    view_ = TensorView(storage_.data(), tensor.dims, tensor.dtype);
    if (content == Content::unread) return;
    copy_bytes(view_.data, kCpu, tensor_.data, tensor_.device, bytes(), stream_);
    stream_.sync();
  }

  const TensorView& view() const { return view_; }
  // What was changed on the host goes to the tensor.
  void write_back() const {
    if (tensor_.device.is_cpu()) return;
    copy_bytes(tensor_.data, tensor_.device, view_.data, kCpu, bytes(), stream_);
    stream_.sync();
  }

 private:
  size_t bytes() const { return tensor_.numel() * size_of(tensor_.dtype); }

  TensorView tensor_;
  Stream stream_;
  Buffer storage_;
  TensorView view_;
};

}  // namespace sluice
