// The other ranks, as far as saving and finding checkpoints needs them.
#pragma once

#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/error.h"

namespace sluice {

class Communicator;

class CheckpointPeers {
 public:
  virtual ~CheckpointPeers() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Collective: every rank's bytes, in rank order. No rank returns before all have called.
  virtual std::vector<std::string> all_gather(std::string_view bytes) = 0;
};

class SelfPeers final : public CheckpointPeers {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::vector<std::string> all_gather(std::string_view bytes) override {
    return {std::string(bytes)};
  }
};

// All ranks of a group whose verbs take host memory. Borrows it.
class CommunicatorPeers final : public CheckpointPeers {
 public:
  explicit CommunicatorPeers(Communicator& group) : group_(&group) {}
  int rank() const override;
  int size() const override;
  std::vector<std::string> all_gather(std::string_view bytes) override;

 private:
  Communicator* group_;
};

// How one rank fared. What fails on one rank must end the same way on all of them, or the others
// would wait for it for ever: so nothing is thrown between two collectives, outcomes are gathered,
// and every rank sees the same list.
struct Outcome {
  ExitCode code = ExitCode::ok;
  std::string text;  // what went wrong; or, if nothing did, what this rank has to say

  bool ok() const { return code == ExitCode::ok; }
};

// Runs `work`, which returns a string, and turns what it throws into an outcome.
template <class Work>
Outcome outcome_of(Work&& work) {
  try {
    return {ExitCode::ok, work()};
  } catch (const Error& error) {
    return {error.code(), error.what()};
  } catch (const std::bad_alloc&) {
    return {ExitCode::io, "out of memory"};
  } catch (const std::exception& error) {
    return {ExitCode::bug, error.what()};
  }
}

// Collective.
std::vector<Outcome> gather_outcomes(CheckpointPeers& peers, const Outcome& mine);
// The first that is not ok, or null.
const Outcome* first_failure(const std::vector<Outcome>& outcomes);

}  // namespace sluice
