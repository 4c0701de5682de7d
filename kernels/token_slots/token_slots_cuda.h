// The CUDA side of token_slots, as its dispatcher sees it.
#pragma once

#include "kernels/token_slots/token_slots.h"

namespace sluice::cuda {

void slot_places(const Context& ctx, const SlotPlaces& args);
void rows_to_slots(const Context& ctx, const RowsToSlots& args);
void slots_to_rows(const Context& ctx, const SlotsToRows& args);

}  // namespace sluice::cuda
