// A communicator that calls `before` on its own thread before every verb of another one, and
// `after` when the verb is done: to hold verbs back, and to see when they run.
#pragma once

#include <functional>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/worker.h"

namespace sluice::test {

class DelayedCommunicator final : public Communicator {
 public:
  using Hook = std::function<void(Verb)>;
  DelayedCommunicator(Communicator& inner, Hook before, Hook after)
      : inner_(inner), before_(std::move(before)), after_(std::move(after)) {}

  const char* name() const override { return inner_.name(); }
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }

  Event broadcast(const TensorView& data, int root) override {
    return later(Verb::broadcast, [=, this] { return inner_.broadcast(data, root); });
  }
  Event all_reduce(const TensorView& data, ReduceOp op) override {
    return later(Verb::all_reduce, [=, this] { return inner_.all_reduce(data, op); });
  }
  Event all_gather(const ConstTensorView& part, const TensorView& whole) override {
    return later(Verb::all_gather, [=, this] { return inner_.all_gather(part, whole); });
  }
  Event reduce_scatter(const ConstTensorView& whole, const TensorView& part, ReduceOp op) override {
    return later(Verb::reduce_scatter,
                 [=, this] { return inner_.reduce_scatter(whole, part, op); });
  }
  Event all_to_all_v(const ConstTensorView& outgoing, std::span<const int64_t> outgoing_counts,
                     const TensorView& incoming,
                     std::span<const int64_t> incoming_counts) override {
    const std::vector<int64_t> out(outgoing_counts.begin(), outgoing_counts.end());
    const std::vector<int64_t> in(incoming_counts.begin(), incoming_counts.end());
    return later(Verb::all_to_all_v,
                 [=, this] { return inner_.all_to_all_v(outgoing, out, incoming, in); });
  }
  Event send(const ConstTensorView& data, int to) override {
    return later(Verb::point_to_point, [=, this] { return inner_.send(data, to); });
  }
  Event recv(const TensorView& data, int from) override {
    return later(Verb::point_to_point, [=, this] { return inner_.recv(data, from); });
  }
  Event send_recv(const ConstTensorView& outgoing, int to, const TensorView& incoming,
                  int from) override {
    return later(Verb::point_to_point,
                 [=, this] { return inner_.send_recv(outgoing, to, incoming, from); });
  }
  Event barrier() override {
    return later(Verb::barrier, [this] { return inner_.barrier(); });
  }
  std::unique_ptr<Communicator> split(int color, int key) override {
    worker_.drain();
    return inner_.split(color, key);
  }
  void abort(ExitCode code) override { inner_.abort(code); }
  void shutdown() override {
    worker_.drain();
    inner_.shutdown();
  }
  Traffic traffic(Verb verb) const override { return inner_.traffic(verb); }

 private:
  Event later(Verb verb, std::function<Event()> run) {
    return worker_.run([this, verb, run = std::move(run)] {
      before_(verb);
      run().wait();
      after_(verb);
    });
  }

  Communicator& inner_;
  Hook before_;
  Hook after_;
  Worker worker_;
};

}  // namespace sluice::test
