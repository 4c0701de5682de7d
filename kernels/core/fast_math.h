// exp, softplus, sigmoid and silu without branches, calls or tables, so that plain loops over them
// are vectorised. The float forms are within 3e-7 (relative) of the exact value; results below
// 1.2e-38 are 0. NaN stays NaN. The double forms are libm's, for the references.
//
// They are always_inline so that they take on the target of the clone that calls them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace sluice {

namespace detail {

inline constexpr float kLog2E = 0x1.715476p+0f;
inline constexpr float kLn2HighF = 0x1.62e4p-1f;  // its products with small integers are exact
inline constexpr float kLn2LowF = 0x1.7f7d1cp-20f;
// Adding it rounds to the nearest integer, which is then in the low bits.
inline constexpr float kRound = 0x1.8p+23f;
inline constexpr int32_t kRoundBits = std::bit_cast<int32_t>(kRound);

}  // namespace detail

// 2^x for x <= 127; below -125 the result is 2^-125. For decays, whose exponent is never positive.
[[gnu::always_inline]] inline float fast_exp2_decay(float x) {
  const float bounded = x < -125.0f ? -125.0f : x;
  const float shifted = bounded + detail::kRound;
  const float f = bounded - (shifted - detail::kRound);  // |f| <= 0.5
  float power = 1.5453163e-4f;                           // near-minimax for 2^f, 5e-9
  power = power * f + 1.3390863e-3f;
  power = power * f + 9.6180826e-3f;
  power = power * f + 5.5503571e-2f;
  power = power * f + 2.4022651e-1f;
  power = power * f + 6.9314719e-1f;
  power = power * f + 1.0f;
  // The integer goes straight into the exponent; kRound's own bits are shifted out.
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) << 23;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(power) + exponent);
}

[[gnu::always_inline]] inline float fast_exp(float x) {
  const float low = x < -88.0f ? -88.0f : x;
  const float bounded = low > 89.0f ? 89.0f : low;
  const float shifted = bounded * detail::kLog2E + detail::kRound;
  const float n = shifted - detail::kRound;
  const float r = (bounded - n * detail::kLn2HighF) - n * detail::kLn2LowF;  // |r| <= 0.347
  float power = 1.3926178e-3f;  // near-minimax for e^r, 1e-8
  power = power * r + 8.3631742e-3f;
  power = power * r + 4.1666555e-2f;
  power = power * r + 1.6666577e-1f;
  power = power * r + 0.5f;
  power = power * (r * r) + r;
  power = power + 1.0f;
  // 2^n as 2 * 2^(n-1): n reaches 128. From n = -126 down the scale, and the result, is 0.
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - detail::kRoundBits + 126;
  const float scale = std::bit_cast<float>(uint32_t(exponent < 0 ? 0 : exponent) << 23);
  return (power + power) * scale;
}
[[gnu::always_inline]] inline double fast_exp(double x) { return std::exp(x); }

// log(1 + exp(x)), and its derivative sigmoid(x), which shares the exponential.
struct SoftplusF {
  float value;
  float slope;
};
[[gnu::always_inline]] inline SoftplusF fast_softplus_slope(float x) {
  const float w = fast_exp(x < 0 ? x : -x);  // in (0, 1]
  // log(1 + w) = 2 atanh(s), s = w / (2 + w) <= 1/3: near-minimax in s^2, 2e-8.
  const float s = w / (2.0f + w);
  const float q = s * s;
  float series = 1.3425749e-1f;
  series = series * q + 1.4118310e-1f;
  series = series * q + 2.0003780e-1f;
  series = series * q + 3.3333320e-1f;
  const float log1p = 2.0f * s + 2.0f * s * q * series;
  const float small = w / (1.0f + w);
  return {.value = (x > 0 ? x : 0.0f) + log1p, .slope = x > 0 ? 1.0f - small : small};
}
[[gnu::always_inline]] inline float fast_softplus(float x) { return fast_softplus_slope(x).value; }
[[gnu::always_inline]] inline double fast_softplus(double x) {
  return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
}

template <class T>
[[gnu::always_inline]] inline T fast_sigmoid(T x) {
  return T(1) / (T(1) + fast_exp(-x));
}

template <class T>
[[gnu::always_inline]] inline T fast_silu(T x) {
  return x * fast_sigmoid(x);
}

// d silu(x) / dx, given sigmoid(x).
template <class T>
[[gnu::always_inline]] inline T silu_slope(T x, T sigmoid) {
  return sigmoid * (T(1) + x * (T(1) - sigmoid));
}

}  // namespace sluice
