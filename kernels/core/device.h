// Where memory lives and work runs.
#pragma once

#include <cstdint>

namespace sluice {

struct Device {
  enum class Kind : uint8_t { cpu, cuda };
  Kind kind = Kind::cpu;
  int8_t index = 0;

  constexpr bool is_cpu() const { return kind == Kind::cpu; }
  constexpr bool is_cuda() const { return kind == Kind::cuda; }
  friend constexpr bool operator==(Device a, Device b) {
    return a.kind == b.kind && a.index == b.index;
  }
};

inline constexpr Device kCpu{Device::Kind::cpu, 0};

}  // namespace sluice
