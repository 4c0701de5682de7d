// A named span of host time, which Nsight Systems shows beside the work that it launches. It costs
// some ten nanoseconds where nobody looks, and nothing in a build without CUDA. A captured step
// shows its spans where it is captured; later launches are the span "step" alone.
#pragma once

#include <string>

#ifdef SLUICE_WITH_CUDA
#include <nvtx3/nvToolsExt.h>
#endif

namespace sluice {

class ProfileRange {
 public:
#ifdef SLUICE_WITH_CUDA
  explicit ProfileRange(const char* name) { nvtxRangePushA(name); }
  ~ProfileRange() { nvtxRangePop(); }
#else
  explicit ProfileRange(const char*) {}
#endif
  explicit ProfileRange(const std::string& name) : ProfileRange(name.c_str()) {}
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;
};

}  // namespace sluice
