// Compiled without contraction, so that bits do not depend on the processor: the clones differ in
// that fma is an instruction and not a call, which takes normal values from 120 to 50 ns.
#include "kernels/initial_values/initial_values_cpu.h"

#include <algorithm>
#include <array>

#include "kernels/initial_values/initial_value.h"

namespace sluice {

double Initializer::operator()(RngKey key, int64_t index) const {
  return portable::initial_value(*this, key, index);
}

namespace cpu {

namespace {

constexpr int64_t kBlock = 1 << 14;

#ifndef __SANITIZE_THREAD__
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#endif
[[gnu::flatten]] void
fill_block(const Initializer& initializer, RngKey key, int64_t first, int64_t count,
           double* values) {
  for (int64_t i = 0; i < count; ++i)
    values[i] = portable::initial_value(initializer, key, first + i);
}

}  // namespace

template <class T>
void initial_values(const InitialValues& args) {
  const int64_t count = args.values.numel();
  T* const values = args.values.as<T>();
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < count; block += kBlock) {
    std::array<double, kBlock> drawn;
    const int64_t size = std::min(kBlock, count - block);
    fill_block(args.initializer, args.key, args.first + block, size, drawn.data());
    for (int64_t i = 0; i < size; ++i) values[block + i] = T(drawn[i]);
  }
}

template void initial_values<float>(const InitialValues&);
template void initial_values<double>(const InitialValues&);

}  // namespace cpu

}  // namespace sluice
