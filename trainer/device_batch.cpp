#include "trainer/device_batch.h"

#include "kernels/core/device_memory.h"

namespace sluice {

ModelInput DeviceBatch::load(const Context& ctx, const Batch& batch) {
  if (ctx.device.is_cpu() || ctx.counting()) {
    rows_ = batch.rows();
    const auto here = [&](ConstTensorView view) {
      view.device = ctx.device;
      return view;
    };
    rows_.doc_begin = here(rows_.doc_begin);
    rows_.local_doc_begin = here(rows_.local_doc_begin);
    rows_.positions = here(rows_.positions);
    return {.tokens = here(batch.tokens()), .targets = here(batch.targets()), .rows = rows_};
  }
  rows_ = batch.rows();
  size_t used = 0;
  const auto room_of = [](const ConstTensorView& view) {
    return align_up(size_t(view.numel()) * size_of(view.dtype));
  };
  const size_t needed = 4 * room_of(batch.tokens()) + room_of(rows_.doc_begin);
  if (storage_.bytes() < needed) storage_ = Buffer(needed, ctx.device);
  const auto upload = [&](const ConstTensorView& host) {
    const TensorView view(static_cast<char*>(storage_.data()) + used, host.dims, host.dtype,
                          ctx.device);
    used += room_of(host);
    copy_bytes(view.data, ctx.device, host.data, kCpu, host.numel() * size_of(host.dtype),
               ctx.stream);
    return view;
  };
  const ConstTensorView tokens = upload(batch.tokens()), targets = upload(batch.targets());
  rows_.doc_begin = upload(rows_.doc_begin);
  rows_.local_doc_begin = upload(rows_.local_doc_begin);
  rows_.positions = upload(rows_.positions);
  return {.tokens = tokens, .targets = targets, .rows = rows_};
}

}  // namespace sluice
