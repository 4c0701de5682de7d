// Rows at fixed places, for exchanges whose shape does not depend on the load. A block is rows that
// lie together: begin[b] to begin[b] + counts[b] - 1, numbers that the device alone knows. In slots
// block b has the places b S to b S + S - 1; those beyond counts[b] hold anything.
//
//   slot_places:    where blocks of several sources begin, once grouped by expert, by source
//                   within:  offsets[e] = first row of expert e,
//                            begin[s,e] = offsets[e] + sum of counts[s',e] over s' < s
//   rows_to_slots:  slots[b S + i] = rows[begin[b] + i],   i < counts[b]
//   slots_to_rows:  rows[begin[b] + i] = slots[b S + i],   i < counts[b]
//
// The CPU refuses counts above S; a GPU, which nobody waits for, leaves such rows behind.
//
// n sources, X experts, D row size
#pragma once

#include "kernels/core/context.h"

namespace sluice {

struct SlotPlaces {
  ConstTensorView counts = {};  // (n, X) i32
  TensorView begin = {};        // (n, X) i64
  TensorView offsets = {};      // (X + 1) i64
};
void slot_places(const Context& ctx, const SlotPlaces& args);

struct RowsToSlots {
  ConstTensorView rows = {};    // (rows, D)
  ConstTensorView begin = {};   // (n, X) i64: blocks in this order
  ConstTensorView counts = {};  // (n, X) i32
  TensorView slots = {};        // (n X S, D)
};
void rows_to_slots(const Context& ctx, const RowsToSlots& args);

struct SlotsToRows {
  ConstTensorView slots = {};   // (n X S, D)
  ConstTensorView begin = {};   // (n, X) i64
  ConstTensorView counts = {};  // (n, X) i32
  TensorView rows = {};         // (rows, D); rows of no block are left alone
};
void slots_to_rows(const Context& ctx, const SlotsToRows& args);

}  // namespace sluice
