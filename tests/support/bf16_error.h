// Operators that fuse several products, in bf16, against the straightforward computation: one
// product after the other over whole rows, with sums, and what a scan carries, in f32 or better,
// and what lies between them rounded to bf16. Both have errors; ours may be kMostBf16Error times
// that one's.
//
// The straightforward computation without rounding is the exact result, which must be the CPU's.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "tests/support/gpu_twin.h"

namespace sluice::test {

enum class Rounding { none, bf16 };
inline double round_to(Rounding rounding, double x) {
  return rounding == Rounding::bf16 ? double(float(bf16(float(x)))) : x;
}

struct Matrix {
  Matrix(int64_t rows, int64_t columns) : rows(rows), columns(columns), all(rows * columns) {}
  double& at(int64_t i, int64_t j) { return all[i * columns + j]; }
  double at(int64_t i, int64_t j) const { return all[i * columns + j]; }

  int64_t rows, columns;
  std::vector<double> all;
};

// element(i, j), rounded.
template <class Element>
Matrix make(int64_t rows, int64_t columns, Rounding rounding, Element&& element) {
  Matrix made(rows, columns);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) made.at(i, j) = round_to(rounding, element(i, j));
  }
  return made;
}

inline Matrix transposed(const Matrix& m) {
  return make(m.columns, m.rows, Rounding::none, [&](int64_t i, int64_t j) { return m.at(j, i); });
}

// factor a b
inline Matrix product(const Matrix& a, const Matrix& b, Rounding rounding, double factor = 1) {
  Matrix sums(a.rows, b.columns);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t k = 0; k < a.columns; ++k) {
      for (int64_t j = 0; j < b.columns; ++j) sums.at(i, j) += a.at(i, k) * b.at(k, j);
    }
  }
  return make(a.rows, b.columns, rounding,
              [&](int64_t i, int64_t j) { return factor * sums.at(i, j); });
}

// Part `index` of the columns of (T, parts, columns).
inline Matrix part(const std::vector<double>& all, int64_t parts, int64_t index, int64_t columns) {
  return make(int64_t(all.size()) / (parts * columns), columns, Rounding::none,
              [&](int64_t t, int64_t j) { return all[(t * parts + index) * columns + j]; });
}

// All of them, a row after the other.
inline Matrix matrix(const std::vector<double>& all, int64_t columns) {
  return part(all, 1, 0, columns);
}

// By name.
using Values = std::map<std::string, std::vector<double>>;

// Outputs by name, of (T, parts, columns), into which parts are added one by one.
struct Outputs {
  void add(const std::string& name, int64_t parts, int64_t index, const Matrix& m,
           Rounding rounding) {
    std::vector<double>& all = of[name];
    all.resize(m.rows * parts * m.columns);
    for (int64_t t = 0; t < m.rows; ++t) {
      for (int64_t j = 0; j < m.columns; ++j) {
        double& sum = all[(t * parts + index) * m.columns + j];
        sum = round_to(rounding, sum + m.at(t, j));
      }
    }
  }
  Values of;
};

// `run` runs the operators, and keeps views of what they read in `inputs`, by name.
using Inputs = std::map<std::string, TensorView>;
template <class Shape>
using Run = void (*)(Side&, const Shape&, Inputs& inputs);
template <class Shape>
using Straightforward = Outputs (*)(const Shape&, const Values&, Rounding);

template <class Shape>
void check_errors(const Shape& shape, Run<Shape> run, Straightforward<Shape> straightforward) {
  constexpr size_t kArenaBytes = size_t{40} << 20;
  const uint64_t seed = uint64_t(testing::UnitTest::GetInstance()->random_seed());
  Side cpu(kCpu, DType::f64, DType::bf16, seed, 2 * kArenaBytes);
  cpu.limit(max_test_elements());
  Inputs views;
  try {
    run(cpu, shape, views);
  } catch (const TooLarge&) {
    GTEST_SKIP() << "too large";
  }
  Values inputs;
  for (const auto& [name, view] : views) inputs[name] = cpu.download(view);
  const Outputs exact = straightforward(shape, inputs, Rounding::none);
  const Outputs rounded = straightforward(shape, inputs, Rounding::bf16);
  for (const Side::Output& output : cpu.outputs())
    EXPECT_LE(error_by_norm(cpu.download(output.view), exact.of.at(output.name)), 1e-10)
        << output.name << " of the CPU";

  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  Side gpu({Device::Kind::cuda, 0}, DType::bf16, DType::bf16, seed, kArenaBytes);
  Inputs unused;
  run(gpu, shape, unused);
  for (const Side::Output& output : gpu.outputs()) {
    const std::vector<double>& expected = exact.of.at(output.name);
    const double ours = error_by_norm(gpu.download(output.view), expected);
    const double theirs = error_by_norm(rounded.of.at(output.name), expected);
    std::printf("%s: off by %.2e, the straightforward computation by %.2e\n", output.name.c_str(),
                ours, theirs);
    EXPECT_LE(ours, kMostBf16Error * theirs) << output.name << ", inputs of seed " << seed;
  }
}

}  // namespace sluice::test
