#include "parallel/communicator.h"

#include <algorithm>
#include <chrono>

namespace sluice {

void Event::wait() const {
  if (!future_.valid()) return;
  try {
    future_.get();
  } catch (const std::future_error&) {
    throw Error(ExitCode::bug, "a communicator was destroyed before this verb had run");
  }
}

bool Event::done() const {
  return !future_.valid() || future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

const char* name_of(Verb verb) {
  switch (verb) {
    case Verb::broadcast:
      return "broadcast";
    case Verb::all_reduce:
      return "all_reduce";
    case Verb::all_gather:
      return "all_gather";
    case Verb::reduce_scatter:
      return "reduce_scatter";
    case Verb::all_to_all_v:
      return "all_to_all_v";
    case Verb::point_to_point:
      return "send or recv";
    case Verb::barrier:
      return "barrier";
  }
  return "?";
}

const char* name_of(ReduceOp op) { return op == ReduceOp::sum ? "sum" : "max"; }

Slice slice_of(int64_t total, int parts, int part) {
  SLUICE_CHECK(total >= 0 && part >= 0 && part < parts, "slice ", part, " of ", parts, " of ",
               total, " elements");
  const int64_t base = total / parts;
  const int64_t longer = total % parts;
  const int64_t begin = part * base + std::min<int64_t>(part, longer);
  return {begin, begin + base + (part < longer ? 1 : 0)};
}

}  // namespace sluice
