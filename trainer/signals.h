// What signals ask of a run. The handlers only set flags; the ranks agree on them at a step's end.
//   SIGTERM, SIGUSR1, SIGINT   checkpoint and stop (exit 75); a second one quits at once (128 + n)
//   SIGUSR2                    checkpoint and go on
#pragma once

#include <array>
#include <csignal>

namespace sluice {

// Installs the handlers, for signals that may have been blocked by whoever started the process; the
// destructor puts back what was there. One at a time in a process.
class SignalFlags {
 public:
  SignalFlags();
  ~SignalFlags();
  SignalFlags(const SignalFlags&) = delete;
  SignalFlags& operator=(const SignalFlags&) = delete;

  // The signal that asks for a stop; 0: none.
  int stop_signal() const;
  bool stop_requested() const { return stop_signal() != 0; }
  // Whether a checkpoint was asked for since the last call.
  bool take_checkpoint_request();

 private:
  static constexpr std::array<int, 4> kSignals = {SIGTERM, SIGUSR1, SIGINT, SIGUSR2};
  std::array<struct sigaction, 4> before_{};
  sigset_t mask_before_{};
};

}  // namespace sluice
