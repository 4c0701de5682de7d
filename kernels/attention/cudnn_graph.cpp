#include "kernels/attention/cudnn_graph.h"

#include <dlfcn.h>

#include <algorithm>
#include <utility>

namespace sluice::cuda::cudnn {

namespace {

constexpr const char* kLibrary = "libcudnn.so.9";
constexpr size_t kOldest = 90000;  // 9.0.0: the graphs of attention are those of this major version

}  // namespace

Library Library::load() {
  void* const loaded = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (loaded == nullptr) {
    const char* const cause = dlerror();
    throw UsageError(concat("cuDNN is not found: ", cause != nullptr ? cause : kLibrary,
                            "; install it, or name its folder in LD_LIBRARY_PATH"));
  }
  Library library;
  const auto find = [&](const char* name, auto& function) {
    void* const address = dlsym(loaded, name);
    if (address == nullptr) throw UsageError(concat(kLibrary, " has no ", name, ": too old"));
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
  find("cudnnGetVersion", library.version);
  find("cudnnGetErrorString", library.error_string);
  find("cudnnGetLastErrorString", library.last_error);
  find("cudnnCreate", library.create);
  find("cudnnDestroy", library.destroy);
  find("cudnnSetStream", library.set_stream);
  find("cudnnBackendCreateDescriptor", library.create_descriptor);
  find("cudnnBackendDestroyDescriptor", library.destroy_descriptor);
  find("cudnnBackendSetAttribute", library.set_attribute);
  find("cudnnBackendGetAttribute", library.get_attribute);
  find("cudnnBackendFinalize", library.finalize);
  find("cudnnBackendExecute", library.execute);
  if (library.version() < kOldest)
    throw UsageError(concat("cuDNN ", library.version_text(), " is too old: 9.0 or later"));
  return library;
}

std::string Library::version_text() const {
  const size_t number = version();
  return concat(number / 10000, ".", number / 100 % 100, ".", number % 100);
}

void Library::check(cudnnStatus_t status, const char* call) const {
  if (status == CUDNN_STATUS_SUCCESS) return;
  const bool memory = status == CUDNN_STATUS_ALLOC_FAILED;
  std::array<char, 512> details{};
  last_error(details.data(), details.size());
  throw Error(memory ? ExitCode::io : ExitCode::bug,
              concat("cuDNN: ", error_string(status), " in ", call, ": ", details.data()));
}

Handle make_handle(const Library& library) {
  cudnnHandle_t handle = nullptr;
  library.check(library.create(&handle), "cudnnCreate");
  return Handle(handle, DestroyHandle{&library});
}

// --- Descriptors ---------------------------------------------------------------------------------

Descriptor::Descriptor(const Library& library, cudnnBackendDescriptorType_t type)
    : library_(&library) {
  library.check(library.create_descriptor(type, &descriptor_), "cudnnBackendCreateDescriptor");
}

Descriptor::~Descriptor() {
  if (descriptor_ != nullptr) library_->destroy_descriptor(descriptor_);
}

Descriptor::Descriptor(Descriptor&& other) noexcept
    : library_(other.library_), descriptor_(std::exchange(other.descriptor_, nullptr)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(library_, other.library_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

void Descriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                     const void* values, int64_t count) {
  library_->check(library_->set_attribute(descriptor_, name, type, count, values),
                  "cudnnBackendSetAttribute");
}

void Descriptor::set(cudnnBackendAttributeName_t name, const Descriptor& other) {
  set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, &other.descriptor_);
}

void Descriptor::finalize() {
  library_->check(library_->finalize(descriptor_), "cudnnBackendFinalize");
}

bool Descriptor::try_finalize() { return library_->finalize(descriptor_) == CUDNN_STATUS_SUCCESS; }

// --- Graphs --------------------------------------------------------------------------------------

const Descriptor& Graph::keep(Descriptor descriptor) {
  kept_.push_back(std::make_unique<Descriptor>(std::move(descriptor)));
  return *kept_.back();
}

Node Graph::add_tensor(int64_t id, cudnnDataType_t type, const Dims4& dims, const Dims4& strides,
                       bool is_virtual, bool is_number) {
  // Of addresses, in bytes. Statistics may begin anywhere.
  const int64_t alignment = type == CUDNN_DATA_BFLOAT16 ? 16 : 4;
  Descriptor tensor(*library_, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, &id);
  tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, &type);
  tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, dims.data(), int64_t(dims.size()));
  tensor.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides.data(), int64_t(strides.size()));
  tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, &alignment);
  tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, &is_virtual);
  tensor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, &is_number);
  tensor.finalize();
  return {.descriptor = &keep(std::move(tensor)), .dims = dims, .strides = strides};
}

Node Graph::tensor(int64_t id, cudnnDataType_t type, const Dims4& dims, const Dims4& strides) {
  return add_tensor(id, type, dims, strides, false, false);
}

Node Graph::number(int64_t id, cudnnDataType_t type) {
  return add_tensor(id, type, {1, 1, 1, 1}, {1, 1, 1, 1}, false, true);
}

Node Graph::between(cudnnDataType_t type, const Dims4& dims, const Dims4& strides) {
  return add_tensor(next_virtual_id_++, type, dims, strides, true, false);
}

void Graph::pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t compute,
                      std::initializer_list<Node> inputs, const Node& y, int64_t axis) {
  constexpr std::array kInputs = {CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
                                  CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                                  CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
  Descriptor function(*library_, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  function.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, &mode);
  function.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, &compute);
  if (axis >= 0) function.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, &axis);
  function.finalize();
  Descriptor operation(*library_, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, keep(std::move(function)));
  size_t index = 0;
  for (const Node& input : inputs) operation.set(kInputs.at(index++), *input.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, *y.descriptor);
  operation.finalize();
  operations_.push_back(keep(std::move(operation)).get());
}

void Graph::matmul(const Node& a, const Node& b, const Node& c) {
  constexpr cudnnDataType_t kCompute = CUDNN_DATA_FLOAT;
  Descriptor product(*library_, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  product.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, &kCompute);
  product.finalize();
  Descriptor operation(*library_, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, keep(std::move(product)));
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, *a.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, *b.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, *c.descriptor);
  operation.finalize();
  operations_.push_back(keep(std::move(operation)).get());
}

void Graph::reduce(cudnnReduceTensorOp_t op, const Node& x, const Node& y) {
  constexpr cudnnDataType_t kCompute = CUDNN_DATA_FLOAT;
  Descriptor reduction(*library_, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  reduction.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, &op);
  reduction.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, &kCompute);
  reduction.finalize();
  Descriptor operation(*library_, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, keep(std::move(reduction)));
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, *x.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, *y.descriptor);
  operation.finalize();
  operations_.push_back(keep(std::move(operation)).get());
}

void Graph::reshape(const Node& x, const Node& y) {
  Descriptor operation(*library_, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, *x.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, *y.descriptor);
  operation.finalize();
  operations_.push_back(keep(std::move(operation)).get());
}

// --- Plans ---------------------------------------------------------------------------------------

namespace {

// The ways that cuDNN proposes, best first.
std::vector<Descriptor> propose(const Library& library, const Descriptor& operations) {
  constexpr cudnnBackendHeurMode_t kMode = CUDNN_HEUR_MODE_A;
  Descriptor heuristic(library, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, &kMode);
  if (!heuristic.try_finalize()) return {};
  int64_t count = 0;
  library.check(library.get_attribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                      CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count, nullptr),
                "cudnnBackendGetAttribute");
  std::vector<Descriptor> engines;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < count; ++i) {
    engines.emplace_back(library, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    raw.push_back(engines.back().get());
  }
  if (count == 0) return {};
  library.check(library.get_attribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                      CUDNN_TYPE_BACKEND_DESCRIPTOR, count, &count, raw.data()),
                "cudnnBackendGetAttribute");
  engines.erase(engines.begin() + std::min(count, int64_t(engines.size())), engines.end());
  return engines;
}

}  // namespace

std::optional<Plan> Plan::build(const Library& library, cudnnHandle_t handle, Graph graph) {
  Descriptor operations(library, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  operations.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, &handle);
  operations.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                 graph.operations_.data(), int64_t(graph.operations_.size()));
  if (!operations.try_finalize()) return std::nullopt;
  for (Descriptor& engine : propose(library, operations)) {
    Descriptor plan(library, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, &handle);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engine);
    if (!plan.try_finalize()) continue;
    return Plan(library, std::move(graph), std::move(operations), std::move(engine),
                std::move(plan));
  }
  return std::nullopt;
}

Plan::Plan(const Library& library, Graph graph, Descriptor operations, Descriptor engine,
           Descriptor plan)
    : library_(&library),
      graph_(std::move(graph)),
      operations_(std::move(operations)),
      engine_(std::move(engine)),
      plan_(std::move(plan)) {
  int64_t count = 0;
  library.check(library.get_attribute(plan_.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                      CUDNN_TYPE_INT64, 1, &count, &workspace_bytes_),
                "cudnnBackendGetAttribute");
}

void Plan::run(cudnnHandle_t handle, const Stream& stream, std::span<const Binding> tensors,
               void* workspace) const {
  std::vector<int64_t> ids;
  std::vector<const void*> addresses;
  for (const Binding& tensor : tensors) {
    ids.push_back(tensor.id);
    addresses.push_back(tensor.address);
  }
  const int64_t count = int64_t(ids.size());
  Descriptor pack(*library_, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, ids.data(), count);
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, addresses.data(), count);
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, &workspace);
  pack.finalize();
  library_->check(library_->set_stream(handle, static_cast<cudaStream_t>(stream.handle)),
                  "cudnnSetStream");
  library_->check(library_->execute(handle, plan_.get(), pack.get()), "cudnnBackendExecute");
}

}  // namespace sluice::cuda::cudnn
