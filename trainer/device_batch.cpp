#include "trainer/device_batch.h"

#include "kernels/core/device_memory.h"

namespace sluice {

void DeviceBatch::load(const Context& ctx, Batch batch) {
  batch_ = std::move(batch);
  tokens_ = batch_->tokens();
  targets_ = batch_->targets();
  rows_ = batch_->rows();
  if (ctx.device.is_cpu()) return;
  ConstTensorView* const views[] = {&tokens_, &targets_, &rows_.doc_begin, &rows_.local_doc_begin,
                                    &rows_.positions};
  size_t needed = 0, used = 0;
  for (ConstTensorView* view : views) needed += align_up(view->numel() * size_of(view->dtype));
  if (!ctx.counting() && storage_.bytes() < needed) storage_ = Buffer(needed, ctx.device);
  for (ConstTensorView* view : views) {
    const size_t bytes = view->numel() * size_of(view->dtype);
    char* const data = ctx.counting() ? nullptr : static_cast<char*>(storage_.data()) + used;
    if (!ctx.counting()) copy_bytes(data, ctx.device, view->data, kCpu, bytes, ctx.stream);
    *view = ConstTensorView(data, view->dims, view->dtype, ctx.device);
    used += align_up(bytes);
  }
}

}  // namespace sluice
