// B batch, T queries and keys, Hq query heads, Hkv key-value heads, hd head dim
#include "kernels/attention/attention_cudnn.h"

#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_cudnn_graphs.h"
#include "kernels/core/cuda_check.h"

namespace sluice::cuda {

namespace {

using cudnn::AttentionProblem;
using cudnn::Binding;
using cudnn::Plan;

// cuDNN on one device: what it was loaded as, or why not, and its plans.
class Installation {
 public:
  explicit Installation(Device device) {
    try {
      library_ = cudnn::Library::load();
      CUDA_CHECK(cudaSetDevice(device.index));
      handle_ = cudnn::make_handle(library_);
    } catch (const Error& error) {
      absence_ = error.what();
    }
  }
  Installation(const Installation&) = delete;  // plans point at the library
  Installation& operator=(const Installation&) = delete;

  const std::string& absence() const { return absence_; }
  cudnnHandle_t handle() const { return handle_.get(); }
  const Plan* forward(const AttentionProblem& problem) {
    return plan(forward_, problem, cudnn::attention_forward_graph);
  }
  const Plan* backward(const AttentionProblem& problem) {
    return plan(backward_, problem, cudnn::attention_backward_graph);
  }

 private:
  using Plans = std::map<AttentionProblem, std::optional<Plan>>;

  template <class MakeGraph>
  const Plan* plan(Plans& plans, const AttentionProblem& problem, MakeGraph make_graph) {
    if (!handle_) return nullptr;
    auto found = plans.find(problem);
    if (found == plans.end()) {
      constexpr size_t kMaxPlans = 256;  // who never repeats a shape must not fill memory
      if (plans.size() >= kMaxPlans) plans.clear();
      found =
          plans
              .emplace(problem, Plan::build(library_, handle_.get(), make_graph(library_, problem)))
              .first;
    }
    return found->second ? &*found->second : nullptr;
  }

  std::string absence_;
  cudnn::Library library_;
  cudnn::Handle handle_;
  Plans forward_, backward_;
};

// Of this thread: a handle serves one thread at a time.
Installation& installation_of(Device device) {
  thread_local std::map<int, Installation> installations;
  return installations.try_emplace(device.index, device).first->second;
}

bool takes_rows(std::initializer_list<ConstTensorView> views) {
  for (const ConstTensorView& view : views) {
    if (view.row_stride % 8 != 0 || reinterpret_cast<uintptr_t>(view.data) % 16 != 0) return false;
  }
  return true;
}

template <class Args>
bool takes(const Args& args) {
  constexpr int64_t kMaxHeadDim = 128, kMaxTokens = 1 << 20;
  const int64_t T = args.q.dim(1), hd = args.q.dim(3);
  return args.q.dtype == DType::bf16 && T > 1 && T <= kMaxTokens && args.k.dim(1) == T &&
         args.query_begin == 0 && hd % 8 == 0 && hd <= kMaxHeadDim && args.scale >= 0 &&
         takes_rows({args.q, args.k, args.v, args.y});
}

template <class Args>
AttentionProblem problem_of(const Args& args) {
  return {.B = args.q.dim(0),
          .T = args.q.dim(1),
          .Hq = args.q.dim(2),
          .Hkv = args.k.dim(2),
          .hd = args.q.dim(3),
          .window = args.window >= args.q.dim(1) ? 0 : args.window,
          .documents = !args.one_document,
          .q_stride = args.q.row_stride,
          .k_stride = args.k.row_stride,
          .v_stride = args.v.row_stride,
          .y_stride = args.y.row_stride,
          .doc_stride = args.doc_begin.row_stride};
}

// The numbers of a run, which must outlive it.
struct Numbers {
  template <class Args>
  explicit Numbers(const Args& args)
      : scale(float(args.scale != 0 ? args.scale : 1 / std::sqrt(double(args.q.dim(3))))),
        window(int32_t(std::min(args.window, args.q.dim(1)))) {}
  // What only some graphs have.
  void bind_mask(const AttentionProblem& problem, const void* doc_begin,
                 std::vector<Binding>& bindings) const {
    if (problem.window > 0) bindings.push_back({cudnn::kWindow, &window});
    if (problem.documents) bindings.push_back({cudnn::kDocBegin, doc_begin});
  }

  float scale;
  float lowest = std::numeric_limits<float>::lowest();
  float one = 1;
  int32_t window;
};

int64_t stats_bytes(const AttentionProblem& p) {
  return int64_t(align_up(size_t(p.B * p.Hq * p.T) * sizeof(float)));
}

// --- Backward in parts. A part's ds, (rows, heads, T, T) in bf16, is in memory while it runs, so a
// part is as many rows, or as many heads of one row, as stay below the limit.

constexpr int64_t kMaxDsBytes = int64_t{1} << 30;

struct Parts {
  int64_t rows = 0, key_heads = 0;  // of one part; 0: too many tokens for even one

  explicit Parts(const AttentionProblem& p) {
    const auto padded = [&](int64_t multiple) {
      return (p.T + multiple - 1) / multiple * multiple;
    };
    const int64_t head = p.Hq / p.Hkv * padded(64) * padded(128) * int64_t(sizeof(bf16));
    const auto largest_divisor = [](int64_t of, int64_t most) {
      while (most > 1 && of % most != 0) --most;
      return most;
    };
    key_heads = largest_divisor(p.Hkv, std::min(p.Hkv, kMaxDsBytes / head));
    rows = key_heads == p.Hkv ? largest_divisor(p.B, std::min(p.B, kMaxDsBytes / head / p.Hkv)) : 1;
  }
};

AttentionProblem part_problem(const AttentionBackward& args, const Parts& parts) {
  AttentionProblem problem = problem_of(args);
  problem.Hq = problem.Hq / problem.Hkv * parts.key_heads;
  problem.Hkv = parts.key_heads;
  problem.B = parts.rows;
  problem.dy_stride = args.dy.row_stride;
  problem.dq_stride = args.dq.row_stride;
  problem.dk_stride = args.dk.row_stride;
  problem.dv_stride = args.dv.row_stride;
  return problem;
}

// The first element of a head of a row of the batch.
template <class View>
const void* address(const View& view, int64_t row, int64_t head) {
  const int64_t element = row * view.dim(1) * view.row_stride + head * view.dim(3);
  return static_cast<const char*>(static_cast<const void*>(view.data)) +
         element * int64_t(sizeof(bf16));
}

}  // namespace

std::optional<int64_t> cudnn_scratch_bytes(Device device, const AttentionForward& args) {
  if (!takes(args)) return std::nullopt;
  const AttentionProblem problem = problem_of(args);
  const Plan* const plan = installation_of(device).forward(problem);
  if (plan == nullptr) return std::nullopt;
  return stats_bytes(problem) + plan->workspace_bytes();
}

std::optional<int64_t> cudnn_scratch_bytes(Device device, const AttentionBackward& args) {
  if (!takes(args) || args.add_to_dq || !takes_rows({args.dy, args.dq, args.dk, args.dv}))
    return std::nullopt;
  const Parts parts(problem_of(args));
  if (parts.key_heads == 0) return std::nullopt;
  const Plan* const plan = installation_of(device).backward(part_problem(args, parts));
  if (plan == nullptr) return std::nullopt;
  return 2 * stats_bytes(problem_of(args)) + plan->workspace_bytes();
}

void attention_forward_cudnn(const Context& ctx, const AttentionForward& args,
                             const TensorView& scratch) {
  Installation& installation = installation_of(ctx.device);
  const AttentionProblem problem = problem_of(args);
  const Plan* const plan = installation.forward(problem);
  SLUICE_CHECK(plan != nullptr, "cuDNN has no plan for what it was asked for before");
  const Numbers numbers(args);
  char* const stats = static_cast<char*>(scratch.data);
  std::vector<Binding> bindings = {
      {cudnn::kQ, args.q.data},         {cudnn::kK, args.k.data}, {cudnn::kV, args.v.data},
      {cudnn::kY, args.y.data},         {cudnn::kStats, stats},   {cudnn::kScale, &numbers.scale},
      {cudnn::kLowest, &numbers.lowest}};
  numbers.bind_mask(problem, args.doc_begin.data, bindings);
  plan->run(installation.handle(), ctx.stream, bindings, stats + stats_bytes(problem));
  if (args.lse) lse_from_stats(ctx, reinterpret_cast<const float*>(stats), args.lse);
}

void attention_backward_cudnn(const Context& ctx, const AttentionBackward& args,
                              const TensorView& scratch) {
  Installation& installation = installation_of(ctx.device);
  const AttentionProblem whole = problem_of(args);
  const Parts parts(whole);
  const AttentionProblem problem = part_problem(args, parts);
  const Plan* const plan = installation.backward(problem);
  SLUICE_CHECK(plan != nullptr, "cuDNN has no plan for what it was asked for before");
  const Numbers numbers(args);
  char* const stats = static_cast<char*>(scratch.data);
  char* const dy_y = stats + stats_bytes(whole);
  char* const workspace = dy_y + stats_bytes(whole);
  const int64_t group = whole.Hq / whole.Hkv;
  stats_from_lse(ctx, args.lse, reinterpret_cast<float*>(stats));
  for (int64_t row = 0; row < whole.B; row += parts.rows) {
    for (int64_t kv = 0; kv < whole.Hkv; kv += parts.key_heads) {
      const int64_t h = kv * group;
      const int64_t first_query = (row * whole.Hq + h) * whole.T * int64_t(sizeof(float));
      std::vector<Binding> bindings = {{cudnn::kQ, address(args.q, row, h)},
                                       {cudnn::kK, address(args.k, row, kv)},
                                       {cudnn::kV, address(args.v, row, kv)},
                                       {cudnn::kY, address(args.y, row, h)},
                                       {cudnn::kStats, stats + first_query},
                                       {cudnn::kDy, address(args.dy, row, h)},
                                       {cudnn::kDq, address(args.dq, row, h)},
                                       {cudnn::kDk, address(args.dk, row, kv)},
                                       {cudnn::kDv, address(args.dv, row, kv)},
                                       {cudnn::kDyY, dy_y + first_query},
                                       {cudnn::kScale, &numbers.scale},
                                       {cudnn::kLowest, &numbers.lowest},
                                       {cudnn::kOne, &numbers.one}};
      numbers.bind_mask(problem, args.doc_begin.as<int32_t>() + row * args.doc_begin.row_stride,
                        bindings);
      plan->run(installation.handle(), ctx.stream, bindings, workspace);
    }
  }
}

std::string why_no_cudnn(Device device) { return installation_of(device).absence(); }

std::string cudnn_support() {
  return concat(CUDNN_MAJOR, ".", CUDNN_MINOR, ".", CUDNN_PATCHLEVEL, ", loaded when asked for");
}

std::string cudnn_version() {
  try {
    return cudnn::Library::load().version_text();
  } catch (const UsageError&) {
    return "none";
  }
}

}  // namespace sluice::cuda
