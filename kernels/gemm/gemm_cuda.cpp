#include "kernels/gemm/gemm_cuda.h"

#include <cublasLt.h>

#include <algorithm>
#include <compare>
#include <map>
#include <memory>
#include <optional>

namespace sluice::cuda {

namespace {

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const ExitCode code = status == CUBLAS_STATUS_ALLOC_FAILED ? ExitCode::io : ExitCode::bug;
  throw Error(code, concat("cuBLASLt: ", cublasLtGetStatusString(status), " in ", call));
}

struct Destroy {
  void operator()(cublasLtContext* handle) const { cublasLtDestroy(handle); }
  void operator()(cublasLtMatmulDescOpaque_t* matmul) const { cublasLtMatmulDescDestroy(matmul); }
  void operator()(cublasLtMatrixLayoutOpaque_t* layout) const {
    cublasLtMatrixLayoutDestroy(layout);
  }
  void operator()(cublasLtMatmulPreferenceOpaque_t* preference) const {
    cublasLtMatmulPreferenceDestroy(preference);
  }
};
using Handle = std::unique_ptr<cublasLtContext, Destroy>;
using Matmul = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroy>;

// Of the pointer, in bytes. The widest loads and the copy engine ask for 16; more would only tell
// buffers apart.
uint32_t alignment_of(const ConstTensorView& view) {
  constexpr uintptr_t kWidest = 16;
  const uintptr_t address = reinterpret_cast<uintptr_t>(view.data);
  return address == 0 ? kWidest : uint32_t(std::min(kWidest, address & -address));
}

// A row-major matrix, as cuBLASLt, which counts columns first, sees it: transposed.
struct Operand {
  int64_t rows = 0, columns = 0, stride = 0;
  DType dtype = DType::f32;
  uint32_t alignment = 0;

  explicit Operand(const ConstTensorView& view)
      : rows(view.rows()),
        columns(view.row_size()),
        stride(std::max(view.row_stride, view.row_size())),
        dtype(view.dtype),
        alignment(alignment_of(view)) {}
  auto operator<=>(const Operand&) const = default;

  Layout layout() const {
    cublasLtMatrixLayout_t layout = nullptr;
    check(cublasLtMatrixLayoutCreate(&layout, dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F,
                                     uint64_t(columns), uint64_t(rows), stride),
          "cublasLtMatrixLayoutCreate");
    return Layout(layout);
  }
};

// What an algorithm is chosen for.
struct Problem {
  Operand a, b, c;
  bool transpose_a = false, transpose_b = false, accumulates = false;
  uint32_t bias_alignment = 0;  // 0: no bias

  explicit Problem(const Gemm& args)
      : a(args.a),
        b(args.b),
        c(args.c),
        transpose_a(args.transpose_a),
        transpose_b(args.transpose_b),
        accumulates(args.beta != 0),
        bias_alignment(args.bias ? alignment_of(args.bias) : 0) {}
  auto operator<=>(const Problem&) const = default;
};

// C^T = op(B)^T op(A)^T: B comes first, and the bias has a number for each row.
struct Plan {
  Matmul matmul;
  Layout a, b, c;
  std::optional<cublasLtMatmulAlgo_t> algorithm;  // none: cuBLASLt refuses

  Plan(cublasLtHandle_t handle, const Problem& problem)
      : a(problem.a.layout()), b(problem.b.layout()), c(problem.c.layout()) {
    cublasLtMatmulDesc_t desc = nullptr;
    check(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "cublasLtMatmulDescCreate");
    matmul.reset(desc);
    set_transpose(CUBLASLT_MATMUL_DESC_TRANSA, problem.transpose_b);
    set_transpose(CUBLASLT_MATMUL_DESC_TRANSB, problem.transpose_a);
    if (problem.bias_alignment > 0) set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    const Preference preference = preference_for(problem);
    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle, matmul.get(), b.get(), a.get(), c.get(), c.get(),
                                       preference.get(), 1, &best, &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return;
    check(status, "cublasLtMatmulAlgoGetHeuristic");
    if (found > 0 && best.state == CUBLAS_STATUS_SUCCESS) algorithm = best.algo;
  }

  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) const {
    check(cublasLtMatmulDescSetAttribute(matmul.get(), attribute, &value, sizeof(value)),
          "cublasLtMatmulDescSetAttribute");
  }

 private:
  void set_transpose(cublasLtMatmulDescAttributes_t attribute, bool transpose) {
    set(attribute, transpose ? CUBLAS_OP_T : CUBLAS_OP_N);
  }

  // Partial sums of a split inner dimension only where they are f32 and added in order.
  static Preference preference_for(const Problem& problem) {
    cublasLtMatmulPreference_t created = nullptr;
    check(cublasLtMatmulPreferenceCreate(&created), "cublasLtMatmulPreferenceCreate");
    Preference preference(created);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check(cublasLtMatmulPreferenceSetAttribute(created, attribute, &value, sizeof(value)),
            "cublasLtMatmulPreferenceSetAttribute");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(kGemmWorkspaceBytes));
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, problem.b.alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, problem.a.alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, problem.c.alignment);
    // The bias is read as widely as results are written.
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        problem.bias_alignment > 0 ? std::min(problem.c.alignment, problem.bias_alignment)
                                   : problem.c.alignment);
    return preference;
  }
};

// cuBLASLt on one device, and what it chose there.
class Library {
 public:
  Library() {
    cublasLtHandle_t handle = nullptr;
    check(cublasLtCreate(&handle), "cublasLtCreate");
    handle_.reset(handle);
  }
  cublasLtHandle_t handle() const { return handle_.get(); }

  const Plan& plan(const Problem& problem) {
    // A training step has some tens of shapes. Whoever never repeats one must not fill memory.
    constexpr size_t kMaxPlans = 4096;
    const auto found = plans_.find(problem);
    if (found != plans_.end()) return found->second;
    if (plans_.size() >= kMaxPlans) plans_.clear();
    return plans_.emplace(problem, Plan(handle_.get(), problem)).first->second;
  }

 private:
  Handle handle_;
  std::map<Problem, Plan> plans_;
};

// Of this thread: a handle serves one thread at a time, and creating one takes milliseconds.
Library& library_of(Device device) {
  thread_local std::map<int, Library> libraries;
  return libraries[device.index];
}

}  // namespace

void gemm(const Context& ctx, const Gemm& args, const TensorView& workspace) {
  const int64_t M = args.c.dim(0), N = args.c.dim(1);
  const int64_t K = args.a.dim(args.transpose_a ? 0 : 1);
  if (M == 0 || N == 0) return;
  if (K == 0) return gemm_plain(ctx, args);
  Library& library = library_of(ctx.device);
  const Plan& plan = library.plan(Problem(args));
  if (!plan.algorithm) return gemm_plain(ctx, args);
  if (args.bias) plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias.data);
  const float alpha = float(args.alpha), beta = float(args.beta);
  const cublasStatus_t status = cublasLtMatmul(
      library.handle(), plan.matmul.get(), &alpha, args.b.data, plan.b.get(), args.a.data,
      plan.a.get(), &beta, args.c.data, plan.c.get(), args.c.data, plan.c.get(), &*plan.algorithm,
      workspace.data, size_t(workspace.numel()), static_cast<cudaStream_t>(ctx.stream.handle));
  check(status, "cublasLtMatmul");
}

}  // namespace sluice::cuda
