#include "kernels/token_slots/token_slots.h"

#include "kernels/core/dispatch.h"
#include "kernels/token_slots/token_slots_cpu.h"
#include "kernels/token_slots/token_slots_cuda.h"

namespace sluice {
namespace {

void check_blocks(const Context& ctx, const ConstTensorView& rows, const ConstTensorView& slots,
                  const ConstTensorView& begin, const ConstTensorView& counts) {
  const auto [n, X] = begin.shape<2>("begin: (n, X)");
  const auto [places, D] = slots.shape<2>("slots: (n X S, D)");
  SLUICE_CHECK(n > 0 && X > 0 && places % (n * X) == 0, places, " places for ", n, " x ", X,
               " blocks");
  expect("begin", begin, {n, X}, DType::i64, ctx.device);
  expect("counts", counts, {n, X}, DType::i32, ctx.device);
  expect("slots", slots, {places, D}, slots.dtype, ctx.device);
  expect("rows", rows, {rows.dim(0), D}, slots.dtype, ctx.device);
}

}  // namespace

void slot_places(const Context& ctx, const SlotPlaces& args) {
  const auto [n, X] = args.counts.shape<2>("counts: (n, X)");
  expect("counts", args.counts, {n, X}, DType::i32, ctx.device);
  expect("begin", args.begin, {n, X}, DType::i64, ctx.device);
  expect("offsets", args.offsets, {X + 1}, DType::i64, ctx.device);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::slot_places(ctx, args);
    fail_no_cuda("slot_places");
  }
  cpu::slot_places(args);
}

void rows_to_slots(const Context& ctx, const RowsToSlots& args) {
  check_blocks(ctx, args.rows, args.slots, args.begin, args.counts);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::rows_to_slots(ctx, args);
    fail_no_cuda("rows_to_slots");
  }
  cpu::rows_to_slots(args);
}

void slots_to_rows(const Context& ctx, const SlotsToRows& args) {
  check_blocks(ctx, args.rows, args.slots, args.begin, args.counts);
  if (ctx.counting()) return;
  if (ctx.device.is_cuda()) {
    if constexpr (kBuiltWithCuda) return cuda::slots_to_rows(ctx, args);
    fail_no_cuda("slots_to_rows");
  }
  cpu::slots_to_rows(args);
}

}  // namespace sluice
