#include "parallel/single_copy.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace sluice::test {
namespace {

constexpr const char* kVariable = "OMPI_MCA_btl_vader_single_copy_mechanism";

// As containers do. Cannot be undone in this process.
void forbid_copies() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_process_vm_readv, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {.len = std::size(filter), .filter = filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    std::_Exit(77);
  }
}

[[noreturn]] void leave_with(bool as_expected) { std::_Exit(as_expected ? 0 : 1); }

TEST(SingleCopyDeathTest, IsNotTriedWhereTheCallIsForbidden) {
  const auto decides = [] {
    unsetenv(kVariable);
    forbid_copies();
    choose_copies();
    const char* chosen = std::getenv(kVariable);
    leave_with(!may_copy_out_of_peers() && chosen != nullptr && std::strcmp(chosen, "none") == 0);
  };
  EXPECT_EXIT(decides(), testing::ExitedWithCode(0), "");
}

TEST(SingleCopyDeathTest, LeavesAUsersDecisionAlone) {
  const auto decides = [] {
    setenv(kVariable, "cma", 1);
    forbid_copies();
    choose_copies();
    leave_with(std::strcmp(std::getenv(kVariable), "cma") == 0);
  };
  EXPECT_EXIT(decides(), testing::ExitedWithCode(0), "");
}

TEST(SingleCopyDeathTest, SaysNothingWhereTheCallIsAllowed) {
  if (!may_copy_out_of_peers()) GTEST_SKIP() << "process_vm_readv is forbidden here";
  const auto decides = [] {
    unsetenv(kVariable);
    choose_copies();
    leave_with(std::getenv(kVariable) == nullptr);
  };
  EXPECT_EXIT(decides(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace sluice::test
