#include "trainer/device_batch.h"

#include <array>
#include <cstring>
#include <utility>

namespace sluice {

namespace {

using Tensors = std::array<ConstTensorView, 5>;

Tensors tensors_of(const Batch& batch) {
  const Rows& rows = batch.rows();
  return {batch.tokens(), batch.targets(), rows.doc_begin, rows.local_doc_begin, rows.positions};
}

size_t bytes_of(const ConstTensorView& view) { return view.numel() * size_of(view.dtype); }

// One after the other, each aligned.
size_t packed_bytes(const Tensors& tensors) {
  size_t bytes = 0;
  for (const ConstTensorView& view : tensors) bytes += align_up(bytes_of(view));
  return bytes;
}

}  // namespace

void DeviceBatch::stage(const Context& ctx, Batch batch, Stream copies) {
  next_ = std::move(batch);
  if (ctx.device.is_cpu() || ctx.counting()) return;
  const Tensors tensors = tensors_of(*next_);
  const size_t bytes = packed_bytes(tensors);
  copied_.wait();  // no copy reads pinned_; while a step runs, the last one is long over
  if (pinned_.bytes() < bytes) {
    pinned_ = PinnedBuffer(bytes);
    staging_ = Buffer(bytes, ctx.device);
  }
  char* to = pinned_.data();
  for (const ConstTensorView& view : tensors) {
    std::memcpy(to, view.data, bytes_of(view));
    to += align_up(bytes_of(view));
  }
  committed_.order(copies);
  copy_bytes(staging_.data(), ctx.device, pinned_.data(), kCpu, bytes, copies);
  copied_.record(copies);
}

void DeviceBatch::commit(const Context& ctx) {
  SLUICE_CHECK(staged(), "commit() needs a staged batch");
  batch_ = std::exchange(next_, std::nullopt);
  Tensors tensors = tensors_of(*batch_);
  if (ctx.device.is_cuda()) {
    const size_t bytes = packed_bytes(tensors);
    if (!ctx.counting()) {
      if (storage_.bytes() < bytes) storage_ = Buffer(bytes, ctx.device);
      copied_.order(ctx.stream);
      copy_bytes(storage_.data(), ctx.device, staging_.data(), ctx.device, bytes, ctx.stream);
      committed_.record(ctx.stream);
    }
    char* at = static_cast<char*>(storage_.data());
    for (ConstTensorView& view : tensors) {
      const size_t used = align_up(bytes_of(view));
      view = ConstTensorView(at, view.dims, view.dtype, ctx.device);
      if (at != nullptr) at += used;
    }
  }
  rows_ = batch_->rows();
  tokens_ = tensors[0];
  targets_ = tensors[1];
  rows_.doc_begin = tensors[2];
  rows_.local_doc_begin = tensors[3];
  rows_.positions = tensors[4];
}

void DeviceBatch::load(const Context& ctx, Batch batch) {
  stage(ctx, std::move(batch), ctx.stream);
  commit(ctx);
}

}  // namespace sluice
