// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). A draw is a pure function of (key, counter), so values do
// not depend on who computes them, in what order, or on how many ranks. The transforms use fixed
// polynomials and explicit fma: CPU and GPU agree bit for bit.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

namespace sluice {

struct RngKey {
  uint64_t seed = 0;
  uint64_t stream = 0;  // what the numbers are for: a hash of a name, or (step, layer, row)
};

// FNV-1a, for turning a parameter's name into RngKey::stream.
constexpr uint64_t hash_name(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : name) hash = (hash ^ uint8_t(c)) * 0x100000001b3ull;
  return hash;
}

// Ten rounds; the key's two words are `seed`, the counter's four are (index, stream).
constexpr std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter,
                                         std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {uint32_t(product1 >> 32) ^ counter[1] ^ key[0], uint32_t(product1),
               uint32_t(product0 >> 32) ^ counter[3] ^ key[1], uint32_t(product0)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

constexpr std::array<uint32_t, 4> random_bits(RngKey key, uint64_t index) {
  return philox(
      {uint32_t(index), uint32_t(index >> 32), uint32_t(key.stream), uint32_t(key.stream >> 32)},
      {uint32_t(key.seed), uint32_t(key.seed >> 32)});
}

// Uniform on the open interval (0, 1), 53 bits.
constexpr double random_uniform(RngKey key, uint64_t index) {
  const auto bits = random_bits(key, index);
  const uint64_t mantissa = (uint64_t{bits[0]} << 21) ^ (bits[1] >> 11);
  return (double(mantissa) + 0.5) * 0x1p-53;
}

// Uniform on {0, ..., bound - 1}, by multiplication; the bias is below 2^-32 for bounds below 2^32.
constexpr uint64_t random_below(RngKey key, uint64_t index, uint64_t bound) {
  const auto bits = random_bits(key, index);
  const uint64_t word = (uint64_t{bits[0]} << 32) | bits[1];
  return uint64_t((static_cast<unsigned __int128>(word) * bound) >> 64);
}

// Standard normal: the inverse of the distribution function, by the rational approximation of
// Wichura, "Algorithm AS 241" (Applied Statistics 37, 1988), routine PPND16; relative error 1e-16.
double random_normal(RngKey key, uint64_t index);

// log and exp with a fixed sequence of operations (not libm's, which differs between machines).
double fixed_log(double x);  // x > 0, normal
double fixed_exp(double x);  // |x| < 700

}  // namespace sluice
