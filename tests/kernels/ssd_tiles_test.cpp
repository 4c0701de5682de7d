// The SSD's path through matrix products, in double, against the plain loops.
#include <gtest/gtest.h>

#include "kernels/chunk_scan/chunk_scan_cpu.h"
#include "kernels/chunk_state/chunk_state_cpu.h"
#include "tests/kernels/ssd_chain.h"
#include "tests/support/tolerance.h"

namespace sluice::test {
namespace {

// Beside the usual shapes, chunks of more tokens than a band of tiles has.
std::vector<SsdShape> tile_shapes() {
  std::vector<SsdShape> shapes = ssd_shapes();
  shapes.push_back({.name = "two_bands", .T = 300, .H = 2, .P = 5, .N = 6, .Q = 100, .first = -1});
  shapes.push_back({.name = "three_bands_and_documents",
                    .B = 2,
                    .T = 280,
                    .H = 4,
                    .G = 2,
                    .P = 3,
                    .N = 4,
                    .Q = 140,
                    .starts = {{63, 64, 65, 140, 200, 279}, {128, 139, 269}},
                    .first = -1});
  return shapes;
}

class SsdTiles : public testing::TestWithParam<SsdShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, SsdTiles, testing::ValuesIn(tile_shapes()), name_of_shape);

void expect_close(const char* what, const Tensor& tiles, const Tensor& reference) {
  EXPECT_LE(relative_error(tiles, reference), tolerance(DType::f64, 10000)) << what;
}

TEST_P(SsdTiles, EqualTheReference) {
  SsdChain plain(GetParam(), DType::f64), tiled(GetParam(), DType::f64);
  plain.forward(), tiled.forward();
  cpu::chunk_state_tiles_forward<double>({.x = tiled.x,
                                          .B = tiled.B,
                                          .dt = tiled.dt,
                                          .cum = tiled.cum,
                                          .doc_begin = tiled.doc_begin,
                                          .state = tiled.state.poison(),
                                          .decay = tiled.decay.poison(),
                                          .chunk = tiled.shape.Q});
  cpu::chunk_scan_tiles_forward<double>({.x = tiled.x,
                                         .B = tiled.B,
                                         .C = tiled.C,
                                         .dt = tiled.dt,
                                         .cum = tiled.cum,
                                         .D = tiled.D,
                                         .doc_begin = tiled.doc_begin,
                                         .incoming = tiled.incoming,
                                         .y = tiled.y.poison(),
                                         .chunk = tiled.shape.Q});
  expect_close("state", tiled.state, plain.state);
  expect_close("decay", tiled.decay, plain.decay);
  expect_close("y", tiled.y, plain.y);

  plain.backward();
  Tensor partial_dD(plain.decay.dims(), DType::f64);  // (B, M, H): B * M rows
  cpu::chunk_scan_tiles_backward<double>({.dy = tiled.dy,
                                          .x = tiled.x,
                                          .B = tiled.B,
                                          .C = tiled.C,
                                          .dt = tiled.dt,
                                          .cum = tiled.cum,
                                          .D = tiled.D,
                                          .doc_begin = tiled.doc_begin,
                                          .incoming = tiled.incoming,
                                          .dx = tiled.dx,
                                          .dB = tiled.dB,
                                          .dC = tiled.dC,
                                          .ddt = tiled.ddt,
                                          .dcum = tiled.dcum,
                                          .dincoming = tiled.dincoming,
                                          .dD = tiled.dD,
                                          .chunk = tiled.shape.Q},
                                         partial_dD);
  tiled.pass_states_backward();
  cpu::chunk_state_tiles_backward<double>({.dstate = tiled.dincoming,
                                           .dlog_decay = tiled.dlog_decay,
                                           .x = tiled.x,
                                           .B = tiled.B,
                                           .dt = tiled.dt,
                                           .cum = tiled.cum,
                                           .doc_begin = tiled.doc_begin,
                                           .dx = tiled.dx,
                                           .dB = tiled.dB,
                                           .ddt = tiled.ddt,
                                           .dcum = tiled.dcum,
                                           .chunk = tiled.shape.Q});
  expect_close("dx", tiled.dx, plain.dx);
  expect_close("dB", tiled.dB, plain.dB);
  expect_close("dC", tiled.dC, plain.dC);
  expect_close("ddt", tiled.ddt, plain.ddt);
  expect_close("dcum", tiled.dcum, plain.dcum);
  expect_close("dincoming", tiled.dincoming, plain.dincoming);
  expect_close("dinitial", tiled.dinitial, plain.dinitial);
  expect_close("dD", tiled.dD, plain.dD);
}

}  // namespace
}  // namespace sluice::test
