#include "trainer/agreement.h"

#include "trainer/error_report.h"

namespace sluice {

void agree(CheckpointPeers& peers, const std::function<void()>& work) {
  const std::vector<Outcome> outcomes = gather_outcomes(peers, outcome_of([&] {
                                                          work();
                                                          return std::string();
                                                        }));
  const Outcome* const failure = first_failure(outcomes);
  if (failure != nullptr) throw AgreedFailure(failure->code, failure->text);
}

int run_on_world(World& world, const std::function<int()>& body) {
  try {
    const int code = body();
    world.comm->shutdown();
    return code;
  } catch (const AgreedFailure& failure) {
    if (world.comm->rank() == 0) report_error(failure);
    world.comm->shutdown();
    return int(failure.code());
  } catch (const std::exception& error) {
    const int code = report_error(error);
    world.comm->abort(ExitCode(code));
    return code;  // a world of one rank
  }
}

}  // namespace sluice
