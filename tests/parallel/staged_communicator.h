// A communicator over host memory that does its verbs in device memory, through another one: what
// runs the contract's suite on NCCL. Every view is copied to the device at the call and, where it
// is written, back at the end of wait().
#pragma once

#include <cuda_runtime_api.h>

#include <cstring>
#include <utility>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/verb_arguments.h"

namespace sluice::test {

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> inner, int device)
      : inner_(std::move(inner)), device_(device) {}

  const char* name() const override { return inner_->name(); }
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }

  Event broadcast(const TensorView& data, int root) override {
    Staged staged(device_);
    const TensorView view = staged.both(data);
    return finish(inner_->broadcast(view, root), std::move(staged));
  }
  Event all_reduce(const TensorView& data, ReduceOp op) override {
    Staged staged(device_);
    const TensorView view = staged.both(data);
    return finish(inner_->all_reduce(view, op), std::move(staged));
  }
  Event all_gather(const ConstTensorView& part, const TensorView& whole) override {
    Staged staged(device_);
    const TensorView to = staged.both(whole);
    const ConstTensorView from = staged.in(part);
    return finish(inner_->all_gather(from, to), std::move(staged));
  }
  Event reduce_scatter(const ConstTensorView& whole, const TensorView& part, ReduceOp op) override {
    Staged staged(device_);
    const ConstTensorView from = staged.in(whole);
    const TensorView to = staged.both(part);
    return finish(inner_->reduce_scatter(from, to, op), std::move(staged));
  }
  Event all_to_all_v(const ConstTensorView& outgoing, std::span<const int64_t> outgoing_counts,
                     const TensorView& incoming,
                     std::span<const int64_t> incoming_counts) override {
    Staged staged(device_);
    const ConstTensorView from = staged.in(outgoing);
    const TensorView to = staged.both(incoming);
    return finish(inner_->all_to_all_v(from, outgoing_counts, to, incoming_counts),
                  std::move(staged));
  }
  Event send(const ConstTensorView& data, int to) override {
    Staged staged(device_);
    const ConstTensorView view = staged.in(data);
    return finish(inner_->send(view, to), std::move(staged));
  }
  Event recv(const TensorView& data, int from) override {
    Staged staged(device_);
    const TensorView view = staged.both(data);
    return finish(inner_->recv(view, from), std::move(staged));
  }
  Event send_recv(const ConstTensorView& outgoing, int to, const TensorView& incoming,
                  int from) override {
    Staged staged(device_);
    const ConstTensorView sent = staged.in(outgoing);
    const TensorView received = staged.both(incoming);
    return finish(inner_->send_recv(sent, to, received, from), std::move(staged));
  }
  Event barrier() override { return inner_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    auto group = inner_->split(color, key);
    if (group == nullptr) return nullptr;
    return std::make_unique<StagedCommunicator>(std::move(group), device_);
  }
  void abort(ExitCode code) override { inner_->abort(code); }
  void shutdown() override { inner_->shutdown(); }
  Traffic traffic(Verb verb) const override { return inner_->traffic(verb); }

 private:
  // The device's copies of a verb's views. A view that lies in another one lies there too.
  class Staged {
   public:
    explicit Staged(int device) : device_{Device::Kind::cuda, int8_t(device)} {
      cudaSetDevice(device);  // on whichever thread a test calls
    }
    Staged(Staged&&) = default;
    ~Staged() {
      for (const Copy& copy : copies_) cudaFree(copy.device);
    }

    TensorView both(const TensorView& view) { return stage(view, true); }
    ConstTensorView in(const ConstTensorView& view) {
      TensorView mutable_view(const_cast<void*>(view.data), view.dims, view.dtype, view.device);
      mutable_view.row_stride = view.row_stride;
      return stage(mutable_view, false);
    }
    void copy_back() const {
      for (const Copy& copy : copies_) {
        if (copy.written) cudaMemcpy(copy.host, copy.device, copy.bytes, cudaMemcpyDeviceToHost);
      }
    }

   private:
    struct Copy {
      char* host;
      char* device;
      size_t bytes;
      bool written;
    };
    TensorView stage(TensorView view, bool written) {
      if (!view) return view;
      view.device = device_;
      char* const host = static_cast<char*>(view.data);
      const size_t bytes = size_t(bytes_of(view));
      if (bytes == 0) return view;
      for (Copy& copy : copies_) {
        if (host < copy.host || host + bytes > copy.host + copy.bytes) continue;
        copy.written |= written;
        view.data = copy.device + (host - copy.host);
        return view;
      }
      void* memory = nullptr;
      SLUICE_CHECK(cudaMalloc(&memory, bytes) == cudaSuccess, "no device memory");
      cudaMemcpy(memory, host, bytes, cudaMemcpyHostToDevice);
      copies_.push_back({host, static_cast<char*>(memory), bytes, written});
      view.data = memory;
      return view;
    }
    Device device_;
    std::vector<Copy> copies_;
  };

  class StagedCompletion final : public Completion {
   public:
    StagedCompletion(const Event& inner, Staged staged)
        : inner_(inner), staged_(std::move(staged)) {}
    void wait() const override {
      inner_.wait();
      staged_.copy_back();
    }
    bool done() const override { return inner_.done(); }
    void order(const Stream&) const override { wait(); }

   private:
    Event inner_;
    Staged staged_;
  };
  static Event finish(const Event& inner, Staged staged) {
    return Event(std::make_shared<StagedCompletion>(inner, std::move(staged)));
  }

  std::unique_ptr<Communicator> inner_;
  int device_;
};

}  // namespace sluice::test
