// Communicators that hold the verbs of another one back, to see what is done meanwhile.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/worker.h"

namespace sluice::test {

// Calls `before` on its own thread before every verb, and `after` when the verb is done; so do the
// groups that are split from it, each on a thread of its own. Whoever waits for a verb calls
// `waiting` first, if given.
class DelayedCommunicator final : public Communicator {
 public:
  using Hook = std::function<void(Verb)>;
  DelayedCommunicator(Communicator& inner, Hook before, Hook after, Hook waiting = {})
      : inner_(inner),
        before_(std::move(before)),
        after_(std::move(after)),
        waiting_(std::move(waiting)) {}

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
    auto group = inner_.split(color, key);
    if (group == nullptr) return nullptr;
    auto delayed = std::make_unique<DelayedCommunicator>(*group, before_, after_, waiting_);
    delayed->owned_ = std::move(group);
    return delayed;
  }
  void abort(ExitCode code) override { inner_.abort(code); }
  void shutdown() override {
    worker_.drain();
    inner_.shutdown();
  }
  Traffic traffic(Verb verb) const override { return inner_.traffic(verb); }

 private:
  class Watched final : public Completion {
   public:
    Watched(Event event, std::function<void()> waiting)
        : event_(std::move(event)), waiting_(std::move(waiting)) {}
    void wait() const override {
      waiting_();
      event_.wait();
    }
    bool done() const override { return event_.done(); }
    void order(const Stream&) const override { wait(); }

   private:
    Event event_;
    std::function<void()> waiting_;
  };

  Event later(Verb verb, std::function<Event()> run) {
    Event event = worker_.run([this, verb, run = std::move(run)] {
      before_(verb);
      run().wait();
      after_(verb);
    });
    if (!waiting_) return event;
    return Event(std::make_shared<Watched>(std::move(event), [this, verb] { waiting_(verb); }));
  }

  std::unique_ptr<Communicator> owned_;  // outlives the worker; null: inner_ is another's
  Communicator& inner_;
  Hook before_;
  Hook after_;
  Hook waiting_;
  Worker worker_;
};

// A communicator whose verb number `verb`, from 0, begins when `may_begin(verb)` says so: when the
// work is done that the verb should hide. Where that work waits for the verb instead, nobody would
// ever go on; so after ten seconds the verb begins all the same, and counts as late.
class HeldVerbs {
 public:
  HeldVerbs(Communicator& inner, std::function<bool(int verb)> may_begin)
      : may_begin_(std::move(may_begin)),
        communicator_(
            inner, [this](Verb) { hold(); }, [this](Verb) { ++done_; }) {}

  operator Communicator&() { return communicator_; }
  int done() const { return done_; }
  int late() const { return late_; }

 private:
  void hold() {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!may_begin_(done_)) {
      if (std::chrono::steady_clock::now() > limit) {
        ++late_;
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  std::function<bool(int)> may_begin_;
  std::atomic<int> done_ = 0, late_ = 0;
  DelayedCommunicator communicator_;
};

}  // namespace sluice::test
