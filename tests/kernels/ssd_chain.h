// The four operators of Mamba-2's SSD as one chain, forward and backward, for tests.
// B batch, T tokens, H heads, P head dim, G groups, N state dim, Q chunk length, M chunks of a row
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/chunk_cumsum/chunk_cumsum.h"
#include "kernels/chunk_scan/chunk_scan.h"
#include "kernels/chunk_state/chunk_state.h"
#include "kernels/state_passing/state_passing.h"
#include "tests/support/tensors.h"

namespace sluice::test {

struct SsdShape {
  const char* name = "";
  int64_t B = 1, T = 1, H = 1, G = 1, P = 1, N = 1, Q = 1;
  std::vector<std::vector<int64_t>> starts = {};  // documents of each row of the batch
  int64_t first = 0;                              // start of each row's first; -1: the state enters
  double A_log = 0;                               // mean; -4: decays near 1, 3: near 0
  double dt_min = 0;
  double dt_max = std::numeric_limits<double>::infinity();
};

inline void PrintTo(const SsdShape& shape, std::ostream* out) { *out << shape.name; }
inline std::string name_of_shape(const testing::TestParamInfo<SsdShape>& info) {
  return info.param.name;
}

// x, B, C and dt_raw are columns of wider rows, as projections have them.
struct SsdChain {
  SsdChain(const SsdShape& shape, DType dtype)
      : shape(shape),
        M(num_chunks(shape.T, shape.Q)),
        doc_begin(documents(shape.B, shape.T, shape.starts, shape.first)),
        x({shape.B, shape.T, shape.H, shape.P}, dtype, 3),
        B({shape.B, shape.T, shape.G, shape.N}, dtype, 2),
        C({shape.B, shape.T, shape.G, shape.N}, dtype, 1),
        dt_raw({shape.B, shape.T, shape.H}, dtype, 5),
        dt_bias({shape.H}, dtype),
        A_log({shape.H}, dtype),
        D({shape.H}, dtype),
        initial({shape.B, shape.H, shape.P, shape.N}, dtype),
        dt({shape.B, shape.T, shape.H}, dtype),
        cum({shape.B, shape.T, shape.H}, dtype),
        state({shape.B, M, shape.H, shape.P, shape.N}, dtype),
        decay({shape.B, M, shape.H}, dtype),
        incoming({shape.B, M, shape.H, shape.P, shape.N}, dtype),
        final_state({shape.B, shape.H, shape.P, shape.N}, dtype),
        total_decay({shape.B, shape.H}, dtype),
        y({shape.B, shape.T, shape.H, shape.P}, dtype),
        dy({shape.B, shape.T, shape.H, shape.P}, dtype, 2),
        dfinal({shape.B, shape.H, shape.P, shape.N}, dtype),
        dx({shape.B, shape.T, shape.H, shape.P}, dtype, 3),
        dB({shape.B, shape.T, shape.G, shape.N}, dtype, 2),
        dC({shape.B, shape.T, shape.G, shape.N}, dtype, 1),
        ddt({shape.B, shape.T, shape.H}, dtype),
        dcum({shape.B, shape.T, shape.H}, dtype),
        dincoming({shape.B, M, shape.H, shape.P, shape.N}, dtype),
        dlog_decay({shape.B, M, shape.H}, dtype),
        dinitial({shape.B, shape.H, shape.P, shape.N}, dtype),
        ddt_raw({shape.B, shape.T, shape.H}, dtype, 5),
        ddt_bias({shape.H}, dtype),
        dA_log({shape.H}, dtype),
        dD({shape.H}, dtype) {
    x.fill_normal(1), B.fill_normal(2), C.fill_normal(3);
    dt_raw.fill_normal(4), dt_bias.fill_normal(5, 0.5, -1);
    A_log.fill_normal(6, 0.3, shape.A_log), D.fill_normal(7), initial.fill_normal(8);
    dy.fill_normal(9), dfinal.fill_normal(10);
    ddt_bias.fill(0), dA_log.fill(0), dD.fill(0);
  }

  void cumsum() {
    chunk_cumsum_forward(ctx, {.dt_raw = dt_raw,
                               .dt_bias = dt_bias,
                               .A_log = A_log,
                               .doc_begin = doc_begin,
                               .dt = dt,
                               .cum = cum,
                               .chunk = shape.Q,
                               .dt_min = shape.dt_min,
                               .dt_max = shape.dt_max});
  }
  void chunk_states() {
    chunk_state_forward(ctx, {.x = x,
                              .B = B,
                              .dt = dt,
                              .cum = cum,
                              .doc_begin = doc_begin,
                              .state = state,
                              .decay = decay,
                              .chunk = shape.Q});
  }
  void pass_states() {
    state_passing_forward(ctx, {.state = state,
                                .decay = decay,
                                .initial = initial,
                                .incoming = incoming,
                                .final_state = final_state,
                                .total_decay = total_decay});
  }
  void scan() {
    chunk_scan_forward(ctx, {.x = x,
                             .B = B,
                             .C = C,
                             .dt = dt,
                             .cum = cum,
                             .D = D,
                             .doc_begin = doc_begin,
                             .incoming = incoming,
                             .y = y,
                             .chunk = shape.Q});
  }
  void forward() { cumsum(), chunk_states(), pass_states(), scan(); }

  void scan_backward() {
    chunk_scan_backward(ctx, {.dy = dy,
                              .x = x,
                              .B = B,
                              .C = C,
                              .dt = dt,
                              .cum = cum,
                              .D = D,
                              .doc_begin = doc_begin,
                              .incoming = incoming,
                              .dx = dx,
                              .dB = dB,
                              .dC = dC,
                              .ddt = ddt,
                              .dcum = dcum,
                              .dincoming = dincoming,
                              .dD = dD,
                              .chunk = shape.Q});
  }
  void pass_states_backward() {  // in place: dincoming becomes doutgoing
    state_passing_backward(ctx, {.dincoming = dincoming,
                                 .incoming = incoming,
                                 .decay = decay,
                                 .dfinal = dfinal,
                                 .doutgoing = dincoming,
                                 .dlog_decay = dlog_decay,
                                 .dinitial = dinitial});
  }
  void chunk_states_backward() {
    chunk_state_backward(ctx, {.dstate = dincoming,
                               .dlog_decay = dlog_decay,
                               .x = x,
                               .B = B,
                               .dt = dt,
                               .cum = cum,
                               .doc_begin = doc_begin,
                               .dx = dx,
                               .dB = dB,
                               .ddt = ddt,
                               .dcum = dcum,
                               .chunk = shape.Q});
  }
  void cumsum_backward() {
    chunk_cumsum_backward(ctx, {.ddt = ddt,
                                .dcum = dcum,
                                .dt_raw = dt_raw,
                                .dt_bias = dt_bias,
                                .A_log = A_log,
                                .doc_begin = doc_begin,
                                .ddt_raw = ddt_raw,
                                .ddt_bias = ddt_bias,
                                .dA_log = dA_log,
                                .chunk = shape.Q,
                                .dt_min = shape.dt_min,
                                .dt_max = shape.dt_max});
  }
  void backward() {
    scan_backward(), pass_states_backward(), chunk_states_backward(), cumsum_backward();
  }

  TestContext ctx;
  SsdShape shape;
  int64_t M;
  Tensor doc_begin;
  Tensor x, B, C, dt_raw, dt_bias, A_log, D, initial;
  Tensor dt, cum, state, decay, incoming, final_state, total_decay, y;
  Tensor dy, dfinal;
  Tensor dx, dB, dC, ddt, dcum, dincoming, dlog_decay, dinitial, ddt_raw, ddt_bias, dA_log, dD;
};

// The shapes that every test of the chain runs: all of T, Q, documents, groups and decays.
inline std::vector<SsdShape> ssd_shapes() {
  return {
      {.name = "one_token", .B = 5, .H = 3},
      {.name = "one_token_entering", .B = 5, .H = 3, .first = -1},
      {.name = "chunk_of_one", .B = 2, .T = 5, .H = 2, .P = 3, .N = 2, .Q = 1, .first = -1},
      {.name = "chunk_beyond_row", .T = 5, .H = 2, .G = 2, .P = 3, .N = 4, .Q = 8, .first = -2},
      {.name = "whole_chunks", .T = 12, .H = 4, .G = 2, .P = 5, .N = 3, .Q = 4, .first = -1},
      {.name = "ragged", .B = 2, .T = 23, .H = 6, .G = 3, .P = 7, .N = 5, .Q = 5, .first = -1},
      {.name = "first_token_starts", .T = 11, .H = 2, .P = 3, .N = 3, .Q = 4},
      {.name = "starts_at_edges",
       .B = 2,
       .T = 16,
       .H = 2,
       .P = 3,
       .N = 4,
       .Q = 4,
       .starts = {{4, 12}, {8}},
       .first = -1},
      {.name = "starts_beside_edges",
       .B = 2,
       .T = 13,
       .H = 3,
       .P = 2,
       .N = 3,
       .Q = 4,
       .starts = {{3, 5}, {7, 9, 12}},
       .first = -3},
      {.name = "consecutive_starts",
       .T = 14,
       .H = 2,
       .G = 2,
       .P = 3,
       .N = 2,
       .Q = 5,
       .starts = {{1, 2, 3, 4, 5, 6, 13}},
       .first = -1},
      {.name = "decays_near_one",
       .T = 37,
       .H = 2,
       .P = 3,
       .N = 4,
       .Q = 8,
       .starts = {{29}},
       .first = -1,
       .A_log = -6},
      {.name = "decays_near_zero",
       .T = 19,
       .H = 2,
       .P = 3,
       .N = 4,
       .Q = 6,
       .starts = {{10}},
       .first = -1,
       .A_log = 3},
      {.name = "clamped_dt",
       .T = 17,
       .H = 2,
       .P = 3,
       .N = 2,
       .Q = 6,
       .first = -1,
       .dt_min = 0.2,
       .dt_max = 0.5},
  };
}

}  // namespace sluice::test
