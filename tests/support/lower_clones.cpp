// Linked with -Wl,--wrap=__cpu_indicator_init, this makes function clones resolve as on a processor
// of the level SLUICE_CLONE_LEVEL (of x86-64-v1, v3, v4): the clones for lesser processors are
// timed and tested on this one, as they are shipped. Resolvers run before main and before
// relocation ends, so this may call nothing but libgcc, and there is no switch at run time.
#include <cstdio>
#include <cstdlib>

extern "C" {

// libgcc's processor model: bits 1 and 2 of the third word are x86-64-v3 and x86-64-v4.
extern unsigned int __cpu_features2[];
int __real___cpu_indicator_init();

int __wrap___cpu_indicator_init() {
  const int result = __real___cpu_indicator_init();
  __cpu_features2[2] &= SLUICE_CLONE_LEVEL >= 3 ? ~0x4u : ~0x6u;
  return result;
}

}  // extern "C"

namespace {

// The bits' places are libgcc's own affair, so they are checked in every run.
[[gnu::constructor]] void check_level() {
  const bool v4 = __builtin_cpu_supports("x86-64-v4");
  const bool v3 = __builtin_cpu_supports("x86-64-v3");
  if (!v4 && (SLUICE_CLONE_LEVEL >= 3 || !v3)) return;
  std::fputs("lower_clones: this libgcc keeps its processor model elsewhere\n", stderr);
  std::abort();
}

}  // namespace
