// What the tests of the selective scan read. B batch, T tokens, E channels, N state dim
#pragma once

#include "kernels/selective_scan/selective_scan.h"
#include "tests/support/tensors.h"

namespace sluice::test {

struct ScanShape {
  int64_t B, T, E, N;
  std::vector<std::vector<int64_t>> starts;
  int64_t first = 0;  // doc_begin of each row's first document; negative: a state comes in
  bool gate = true;
};
inline std::ostream& operator<<(std::ostream& out, const ScanShape& s) {
  return out << "B" << s.B << " T" << s.T << " E" << s.E << " N" << s.N << " first " << s.first
             << (s.gate ? " gate" : "");
}

struct ScanInputs {
  ScanInputs(const ScanShape& s, DType dtype, int64_t padding)
      : shape(s),
        u({s.B, s.T, s.E}, dtype, padding),
        delta({s.B, s.T, s.E}, dtype, padding),
        z({s.B, s.T, s.E}, dtype, padding),
        dy({s.B, s.T, s.E}, dtype, padding),
        B({s.B, s.T, s.N}, dtype, padding),
        C({s.B, s.T, s.N}, dtype, padding),
        dt_bias({s.E}, dtype),
        A_log({s.E, s.N}, dtype),
        D({s.E}, dtype),
        docs(documents(s.B, s.T, s.starts, s.first)),
        initial({s.B, s.E, s.N}, dtype) {
    u.fill_normal(1), delta.fill_normal(2), z.fill_normal(3), B.fill_normal(4), C.fill_normal(5);
    // Steps around 0.05 and decays near 1, so that gradients travel across spans.
    dt_bias.fill_normal(6, 0.5, -3);
    A_log.fill_normal(7, 0.5, 0.2);
    D.fill_normal(8), initial.fill_normal(9), dy.fill_normal(10);
  }
  ConstTensorView gate() const { return shape.gate ? ConstTensorView(z) : ConstTensorView(); }

  ScanShape shape;
  TestContext ctx;
  Tensor u, delta, z, dy, B, C, dt_bias, A_log, D, docs, initial;
};

}  // namespace sluice::test
