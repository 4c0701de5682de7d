// The CPU side of token_slots, as its dispatcher sees it.
#pragma once

#include "kernels/token_slots/token_slots.h"

namespace sluice::cpu {

void slot_places(const SlotPlaces& args);
void rows_to_slots(const RowsToSlots& args);
void slots_to_rows(const SlotsToRows& args);

}  // namespace sluice::cpu
