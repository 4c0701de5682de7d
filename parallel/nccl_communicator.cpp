#include "parallel/nccl_communicator.h"

#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "kernels/core/cuda_check.h"
#include "parallel/planned_communicator.h"
#include "parallel/self_communicator.h"
#include "parallel/verb_arguments.h"

#define NCCL_CHECK(call)                                             \
  do {                                                               \
    const ncclResult_t nccl_status = (call);                         \
    if (nccl_status != ncclSuccess) nccl_failed(#call, nccl_status); \
  } while (0)

namespace sluice {
namespace {

// A wait polls quickly at first; a peer that is far behind is waited for at leisure.
constexpr auto kPollTime = std::chrono::milliseconds(2);
constexpr auto kSleepTime = std::chrono::microseconds(50);

std::string text_of(ncclResult_t status) {
  return concat(ncclGetErrorString(status), " (", ncclGetLastError(nullptr), ")");
}

[[noreturn]] void nccl_failed(const char* call, ncclResult_t status) {
  throw Error(ExitCode::hang, concat("NCCL failed: ", text_of(status), " in ", call));
}

// Unless the user has set them.
void set_nccl_defaults() {
  // NVLink multicast (NVLS) sums in the switch: another order of sums, and a resource that hosts
  // shared by several jobs run out of. Whoever wants it says so.
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
  // Ranks connect when they start, not in a first verb: there a rank would wait for the others,
  // who may be on their way into a verb of another group.
  setenv("NCCL_RUNTIME_CONNECT", "0", /*overwrite=*/0);
}

template <class Done>
void poll(Done&& done) {
  const auto sleep_from = std::chrono::steady_clock::now() + kPollTime;
  while (!done()) {
    if (std::chrono::steady_clock::now() < sleep_from) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kSleepTime);
    }
  }
}

ncclDataType_t reduced_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ncclFloat64;
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i64:
      return ncclInt64;
    case DType::i32:
      return ncclInt32;
    case DType::u8:
      return ncclUint8;
    case DType::u16:
      break;
  }
  throw Error(ExitCode::bug, concat("NCCL cannot reduce ", name_of(dtype)));
}

ncclRedOp_t operator_of(ReduceOp op) { return op == ReduceOp::sum ? ncclSum : ncclMax; }

// The counters see the call, not the memory.
TensorView counted(const TensorView& view) {
  return view ? TensorView(nullptr, view.dims, view.dtype) : TensorView{};
}
ConstTensorView counted(const ConstTensorView& view) {
  return view ? ConstTensorView(nullptr, view.dims, view.dtype) : ConstTensorView{};
}

char* bytes_at(const TensorView& view, int64_t element = 0) {
  return static_cast<char*>(view.data) + element * int64_t(size_of(view.dtype));
}
const char* bytes_at(const ConstTensorView& view, int64_t element = 0) {
  return static_cast<const char*>(view.data) + element * int64_t(size_of(view.dtype));
}

class NcclCommunicator;

// A CUDA event behind a verb.
class NcclCompletion final : public Completion {
 public:
  NcclCompletion(NcclCommunicator& comm, cudaStream_t stream);
  ~NcclCompletion() override { cudaEventDestroy(event_); }
  NcclCompletion(const NcclCompletion&) = delete;
  NcclCompletion& operator=(const NcclCompletion&) = delete;

  void wait() const override;
  bool done() const override { return cudaEventQuery(event_) != cudaErrorNotReady; }
  void order(const Stream& stream) const override {
    CUDA_CHECK(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream.handle), event_, 0));
  }

 private:
  NcclCommunicator& comm_;
  cudaEvent_t event_ = nullptr;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Communicator& host, const NcclOptions& options);
  // A group of `parent`, which holds the host's group too.
  NcclCommunicator(std::unique_ptr<Communicator> host, NcclCommunicator& parent)
      : NcclCommunicator(*host, parent.options_) {
    owned_host_ = std::move(host);
    parent_ = &parent;
    parent_->groups_.push_back(this);
    start();
  }
  ~NcclCommunicator() override;

  const char* name() const override { return "nccl"; }
  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }

  Event broadcast(const TensorView& data, int root) override;
  Event all_reduce(const TensorView& data, ReduceOp op) override;
  Event all_gather(const ConstTensorView& part, const TensorView& whole) override;
  Event reduce_scatter(const ConstTensorView& whole, const TensorView& part, ReduceOp op) override;
  Event all_to_all_v(const ConstTensorView& outgoing, std::span<const int64_t> outgoing_counts,
                     const TensorView& incoming, std::span<const int64_t> incoming_counts) override;
  Event send(const ConstTensorView& data, int to) override;
  Event recv(const TensorView& data, int from) override;
  Event send_recv(const ConstTensorView& outgoing, int to, const TensorView& incoming,
                  int from) override;
  Event barrier() override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  void sync(const Stream& stream) override;
  void abort(ExitCode code) override;
  void shutdown() override;
  Traffic traffic(Verb verb) const override { return counter_->traffic(verb); }

  // Throws if a verb of this communicator, or of a group of it, has failed, here or at a peer.
  void check_progress();

 private:
  void start();
  template <class Body>
  Event enqueue(Body&& body);
  template <class Body>
  void grouped(Body&& body);
  void give_up();

  Communicator& host_;
  std::unique_ptr<Communicator> owned_host_;
  NcclCommunicator* parent_ = nullptr;
  std::vector<NcclCommunicator*> groups_;  // that were split from this and are there still
  NcclOptions options_;
  VerbArguments arguments_;
  std::unique_ptr<Communicator> counter_;
  ncclComm_t comm_ = nullptr;
  std::atomic<bool> ended_ = false;  // aborted or shut down
  cudaStream_t stream_ = nullptr;    // on which this communicator's verbs run, in order
  cudaEvent_t ready_ = nullptr;      // how far the compute stream was at the last verb
  void* token_ = nullptr;            // what a barrier reduces
};

NcclCompletion::NcclCompletion(NcclCommunicator& comm, cudaStream_t stream) : comm_(comm) {
  CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
  CUDA_CHECK(cudaEventRecord(event_, stream));
}

void NcclCompletion::wait() const {
  poll([&] {
    comm_.check_progress();
    const cudaError_t status = cudaEventQuery(event_);
    if (status != cudaErrorNotReady) CUDA_CHECK(status);
    return status == cudaSuccess;
  });
}

NcclCommunicator::NcclCommunicator(Communicator& host, const NcclOptions& options)
    : host_(host),
      options_(options),
      arguments_(host.rank(), host.size(), Device::Kind::cuda),
      counter_(make_planned_communicator(host.size(), host.rank())) {
  CUDA_CHECK(cudaSetDevice(options.device));
  // What travels is waited for: its blocks go before those of the compute stream.
  int least = 0, greatest = 0;
  CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  CUDA_CHECK(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
  CUDA_CHECK(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming));
  CUDA_CHECK(cudaMalloc(&token_, sizeof(int32_t)));
  CUDA_CHECK(cudaMemset(token_, 0, sizeof(int32_t)));
}

// Of a group when it is made, so that no verb of it waits for ranks that are on their way into a
// verb of another group; of the world, which is mostly there to be split, with its first verb.
// A rank that fails here leaves the others waiting: whoever runs the job aborts it (host.abort()).
void NcclCommunicator::start() {
  set_nccl_defaults();
  const auto check = [&](ncclResult_t status) {
    if (status == ncclSuccess) return;
    throw Error(ExitCode::hang, concat("rank ", rank(), " of ", size(), " cannot start NCCL ",
                                       nccl_version(), " on GPU ", options_.device, ": ",
                                       text_of(status), "; NCCL_DEBUG=WARN tells more"));
  };
  ncclUniqueId id{};
  if (rank() == 0) check(ncclGetUniqueId(&id));
  const Dims bytes{int64_t(sizeof(id.internal))};
  host_.broadcast(TensorView(reinterpret_cast<uint8_t*>(id.internal), bytes), 0).wait();
  check(ncclCommInitRank(&comm_, size(), id, rank()));
}

NcclCommunicator::~NcclCommunicator() {
  if (parent_ != nullptr) std::erase(parent_->groups_, this);
  give_up();
  if (token_ != nullptr) cudaFree(token_);
  if (ready_ != nullptr) cudaEventDestroy(ready_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

// Its kernels end, whatever they wait for.
void NcclCommunicator::give_up() {
  if (!ended_.exchange(true) && comm_ != nullptr) ncclCommAbort(comm_);
}

void NcclCommunicator::check_progress() {
  if (ended_) throw Error(ExitCode::hang, "a verb of a communicator that was given up");
  ncclResult_t state = ncclSuccess;
  if (comm_ != nullptr) NCCL_CHECK(ncclCommGetAsyncError(comm_, &state));
  if (state != ncclSuccess) {
    const std::string reason = text_of(state);
    give_up();
    throw Error(ExitCode::hang, "NCCL failed: " + reason);
  }
  for (NcclCommunicator* group : groups_) {
    if (!group->ended_) group->check_progress();
  }
}

// The verb runs after what the compute stream was given so far.
template <class Body>
Event NcclCommunicator::enqueue(Body&& body) {
  if (ended_) throw Error(ExitCode::hang, "a verb of a communicator that was given up");
  CUDA_CHECK(cudaSetDevice(options_.device));  // any thread may call
  if (comm_ == nullptr) start();
  CUDA_CHECK(cudaEventRecord(ready_, static_cast<cudaStream_t>(options_.stream.handle)));
  CUDA_CHECK(cudaStreamWaitEvent(stream_, ready_, 0));
  body();
  return Event(std::make_shared<NcclCompletion>(*this, stream_));
}

// Calls that are one operation.
template <class Body>
void NcclCommunicator::grouped(Body&& body) {
  NCCL_CHECK(ncclGroupStart());
  try {
    body();
  } catch (...) {
    ncclGroupEnd();
    throw;
  }
  NCCL_CHECK(ncclGroupEnd());
}

Event NcclCommunicator::broadcast(const TensorView& data, int root) {
  arguments_.broadcast(data, root);
  counter_->broadcast(counted(data), root);
  return enqueue([&] {
    if (data.numel() == 0) return;
    NCCL_CHECK(
        ncclBroadcast(data.data, data.data, bytes_of(data), ncclUint8, root, comm_, stream_));
  });
}

Event NcclCommunicator::all_reduce(const TensorView& data, ReduceOp op) {
  arguments_.all_reduce(data);
  counter_->all_reduce(counted(data), op);
  const ncclDataType_t type = reduced_type(data.dtype);
  return enqueue([&] {
    if (data.numel() == 0) return;
    NCCL_CHECK(
        ncclAllReduce(data.data, data.data, data.numel(), type, operator_of(op), comm_, stream_));
  });
}

// Uneven parts are one broadcast from each rank.
Event NcclCommunicator::all_gather(const ConstTensorView& part, const TensorView& whole) {
  arguments_.all_gather(part, whole);
  counter_->all_gather(counted(part), counted(whole));
  const int64_t width = int64_t(size_of(whole.dtype));
  return enqueue([&] {
    if (whole.numel() == 0) return;
    if (whole.numel() % size() == 0) {
      NCCL_CHECK(ncclAllGather(part.data, whole.data, bytes_of(part), ncclUint8, comm_, stream_));
      return;
    }
    grouped([&] {
      for (int root = 0; root < size(); ++root) {
        const Slice slice = slice_of(whole.numel(), size(), root);
        if (slice.size() == 0) continue;
        char* const place = bytes_at(whole, slice.begin);
        NCCL_CHECK(ncclBroadcast(root == rank() ? part.data : place, place, slice.size() * width,
                                 ncclUint8, root, comm_, stream_));
      }
    });
  });
}

// Uneven parts are one reduction to each rank.
Event NcclCommunicator::reduce_scatter(const ConstTensorView& whole, const TensorView& part,
                                       ReduceOp op) {
  arguments_.reduce_scatter(whole, part);
  counter_->reduce_scatter(counted(whole), counted(part), op);
  const ncclDataType_t type = reduced_type(whole.dtype);
  return enqueue([&] {
    if (whole.numel() == 0) return;
    if (whole.numel() % size() == 0) {
      NCCL_CHECK(ncclReduceScatter(whole.data, part.data, part.numel(), type, operator_of(op),
                                   comm_, stream_));
      return;
    }
    grouped([&] {
      for (int root = 0; root < size(); ++root) {
        const Slice slice = slice_of(whole.numel(), size(), root);
        if (slice.size() == 0) continue;
        NCCL_CHECK(ncclReduce(bytes_at(whole, slice.begin), part.data, slice.size(), type,
                              operator_of(op), root, comm_, stream_));
      }
    });
  });
}

Event NcclCommunicator::all_to_all_v(const ConstTensorView& outgoing,
                                     std::span<const int64_t> outgoing_counts,
                                     const TensorView& incoming,
                                     std::span<const int64_t> incoming_counts) {
  arguments_.all_to_all_v(outgoing, outgoing_counts, incoming, incoming_counts);
  counter_->all_to_all_v(counted(outgoing), outgoing_counts, counted(incoming), incoming_counts);
  const int64_t width = int64_t(size_of(outgoing.dtype));
  return enqueue([&] {
    grouped([&] {
      int64_t out = 0, in = 0;
      for (int peer = 0; peer < size(); ++peer) {
        const int64_t sent = outgoing_counts[peer], received = incoming_counts[peer];
        if (sent > 0) {
          NCCL_CHECK(
              ncclSend(bytes_at(outgoing, out), sent * width, ncclUint8, peer, comm_, stream_));
        }
        if (received > 0) {
          NCCL_CHECK(
              ncclRecv(bytes_at(incoming, in), received * width, ncclUint8, peer, comm_, stream_));
        }
        out += sent;
        in += received;
      }
    });
  });
}

Event NcclCommunicator::send(const ConstTensorView& data, int to) {
  arguments_.send(to);
  return send_recv(data, to, {}, kNoRank);
}

Event NcclCommunicator::recv(const TensorView& data, int from) {
  arguments_.recv(from);
  return send_recv({}, kNoRank, data, from);
}

Event NcclCommunicator::send_recv(const ConstTensorView& outgoing, int to,
                                  const TensorView& incoming, int from) {
  arguments_.send_recv(outgoing, to, incoming, from);
  counter_->send_recv(counted(outgoing), to, counted(incoming), from);
  return enqueue([&] {
    grouped([&] {
      if (to != kNoRank && outgoing.numel() > 0)
        NCCL_CHECK(ncclSend(outgoing.data, bytes_of(outgoing), ncclUint8, to, comm_, stream_));
      if (from != kNoRank && incoming.numel() > 0)
        NCCL_CHECK(ncclRecv(incoming.data, bytes_of(incoming), ncclUint8, from, comm_, stream_));
    });
  });
}

Event NcclCommunicator::barrier() {
  counter_->barrier();
  return enqueue(
      [&] { NCCL_CHECK(ncclAllReduce(token_, token_, 1, ncclInt32, ncclSum, comm_, stream_)); });
}

std::unique_ptr<Communicator> NcclCommunicator::split(int color, int key) {
  arguments_.split(color);
  std::unique_ptr<Communicator> group = host_.split(color, key);
  if (group == nullptr) return nullptr;
  if (group->size() == 1) {
    return make_self_communicator(
        {.device = {Device::Kind::cuda, int8_t(options_.device)}, .stream = options_.stream});
  }
  return std::make_unique<NcclCommunicator>(std::move(group), *this);
}

void NcclCommunicator::sync(const Stream& stream) {
  poll([&] {
    check_progress();
    const cudaError_t status = cudaStreamQuery(static_cast<cudaStream_t>(stream.handle));
    if (status != cudaErrorNotReady) CUDA_CHECK(status);
    return status == cudaSuccess;
  });
}

void NcclCommunicator::abort(ExitCode code) {
  for (NcclCommunicator* group : groups_) group->abort(code);
  give_up();
}

void NcclCommunicator::shutdown() {
  if (comm_ != nullptr) {
    barrier().wait();
    NCCL_CHECK(ncclCommFinalize(comm_));
    NCCL_CHECK(ncclCommDestroy(comm_));
    comm_ = nullptr;
  }
  ended_ = true;
  if (owned_host_ != nullptr) owned_host_->shutdown();
}

}  // namespace

std::string nccl_version() {
  int code = 0;
  if (ncclGetVersion(&code) != ncclSuccess) return "unknown";
  return concat(code / 10000, ".", code / 100 % 100, ".", code % 100);
}

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host,
                                                     const NcclOptions& options) {
  return std::make_unique<NcclCommunicator>(host, options);
}

}  // namespace sluice
