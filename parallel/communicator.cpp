#include "parallel/communicator.h"

#include <algorithm>
#include <chrono>

namespace sluice {

namespace {

class FutureCompletion final : public Completion {
 public:
  explicit FutureCompletion(std::shared_future<void> future) : future_(std::move(future)) {}

  void wait() const override {
    try {
      future_.get();
    } catch (const std::future_error&) {
      throw Error(ExitCode::bug, "a communicator was destroyed before this verb had run");
    }
  }
  bool done() const override {
    return future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }
  void order(const Stream&) const override { wait(); }

 private:
  std::shared_future<void> future_;
};

}  // namespace

Event::Event(std::shared_future<void> future)
    : completion_(std::make_shared<FutureCompletion>(std::move(future))) {}

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
