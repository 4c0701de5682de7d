#include "trainer/signals.h"

#include <unistd.h>

#include <atomic>

#include "kernels/core/error.h"

namespace sluice {
namespace {

// A handler has no argument to find its object by: the one piece of state that must be static.
std::atomic<int> stop_flag{0};
std::atomic<bool> checkpoint_flag{false};
std::atomic<bool> installed{false};
static_assert(std::atomic<int>::is_always_lock_free);

extern "C" void on_stop_signal(int number) {
  if (stop_flag.exchange(number) != 0) ::_exit(128 + number);
}

extern "C" void on_checkpoint_signal(int) { checkpoint_flag.store(true); }

}  // namespace

SignalFlags::SignalFlags() {
  SLUICE_CHECK(!installed.exchange(true), "signal flags exist already");
  stop_flag = 0;
  checkpoint_flag = false;
  sigset_t taken;
  sigemptyset(&taken);
  for (const int number : kSignals) sigaddset(&taken, number);
  // Whoever started us may have left them blocked, which a process inherits.
  ::pthread_sigmask(SIG_UNBLOCK, &taken, &mask_before_);
  for (size_t i = 0; i < kSignals.size(); ++i) {
    struct sigaction action = {};
    action.sa_handler = kSignals[i] == SIGUSR2 ? on_checkpoint_signal : on_stop_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    ::sigaction(kSignals[i], &action, &before_[i]);
  }
}

SignalFlags::~SignalFlags() {
  for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  ::pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
  installed = false;
}

int SignalFlags::stop_signal() const { return stop_flag.load(); }

bool SignalFlags::take_checkpoint_request() { return checkpoint_flag.exchange(false); }

}  // namespace sluice
