// cuDNN's graph API, as far as attention needs it. The library is loaded at run time: nothing links
// to it, and a program that never asks for it never opens it.
//
// A Graph is written down operation by operation over tensors of four dims; a Plan is what cuDNN
// chose to run it with, for one shape.
#pragma once

#include <cudnn_graph.h>

#include <array>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/stream.h"

namespace sluice::cuda::cudnn {

// The functions of libcudnn.so.9. Copies share the loaded library, which stays for the process.
struct Library {
  decltype(&cudnnGetVersion) version = nullptr;
  decltype(&cudnnGetErrorString) error_string = nullptr;
  decltype(&cudnnGetLastErrorString) last_error = nullptr;
  decltype(&cudnnCreate) create = nullptr;
  decltype(&cudnnDestroy) destroy = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor = nullptr;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor = nullptr;
  decltype(&cudnnBackendSetAttribute) set_attribute = nullptr;
  decltype(&cudnnBackendGetAttribute) get_attribute = nullptr;
  decltype(&cudnnBackendFinalize) finalize = nullptr;
  decltype(&cudnnBackendExecute) execute = nullptr;

  // Throws UsageError: there is none, or it is too old.
  static Library load();
  std::string version_text() const;  // "9.19.0"
  // Throws Error(bug), or IoError if memory is short.
  void check(cudnnStatus_t status, const char* call) const;
};

struct DestroyHandle {
  const Library* library = nullptr;
  void operator()(cudnnHandle_t handle) const { library->destroy(handle); }
};
using Handle = std::unique_ptr<cudnnContext, DestroyHandle>;
Handle make_handle(const Library& library);

// One of cuDNN's opaque objects: attributes are set, then it is finalized.
class Descriptor {
 public:
  Descriptor(const Library& library, cudnnBackendDescriptorType_t type);
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;

  cudnnBackendDescriptor_t get() const { return descriptor_; }
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const void* values,
           int64_t count = 1);
  void set(cudnnBackendAttributeName_t name, const Descriptor& other);
  void finalize();
  // Whether cuDNN can do this.
  bool try_finalize();

 private:
  const Library* library_;
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

using Dims4 = std::array<int64_t, 4>;

// A tensor of a graph. One with an id lies in memory, at the address that a run is given for the
// id; the others pass from operation to operation.
struct Node {
  const Descriptor* descriptor = nullptr;
  Dims4 dims = {};
  Dims4 strides = {};
};

class Graph {
 public:
  explicit Graph(const Library& library) : library_(&library) {}

  Node tensor(int64_t id, cudnnDataType_t type, const Dims4& dims, const Dims4& strides);
  Node number(int64_t id, cudnnDataType_t type);  // at a host address
  Node between(cudnnDataType_t type, const Dims4& dims, const Dims4& strides);

  // y = mode(x, b, t), computed in `compute`. axis: of CUDNN_POINTWISE_GEN_INDEX.
  void pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t compute,
                 std::initializer_list<Node> inputs, const Node& y, int64_t axis = -1);
  void matmul(const Node& a, const Node& b, const Node& c);
  void reduce(cudnnReduceTensorOp_t op, const Node& x, const Node& y);
  void reshape(const Node& x, const Node& y);

 private:
  friend class Plan;
  const Descriptor& keep(Descriptor descriptor);
  Node add_tensor(int64_t id, cudnnDataType_t type, const Dims4& dims, const Dims4& strides,
                  bool is_virtual, bool is_number);

  const Library* library_;
  std::vector<std::unique_ptr<Descriptor>> kept_;  // nodes point at them
  std::vector<cudnnBackendDescriptor_t> operations_;
  int64_t next_virtual_id_ = int64_t{1} << 20;
};

struct Binding {
  int64_t id = 0;
  const void* address = nullptr;
};

class Plan {
 public:
  // The first of the ways that cuDNN proposes for the graph which it can build; nothing if there is
  // none.
  static std::optional<Plan> build(const Library& library, cudnnHandle_t handle, Graph graph);

  int64_t workspace_bytes() const { return workspace_bytes_; }
  void run(cudnnHandle_t handle, const Stream& stream, std::span<const Binding> tensors,
           void* workspace) const;

 private:
  Plan(const Library& library, Graph graph, Descriptor operations, Descriptor engine,
       Descriptor plan);

  const Library* library_;
  Graph graph_;
  Descriptor operations_, engine_, plan_;
  int64_t workspace_bytes_ = 0;
};

}  // namespace sluice::cuda::cudnn
