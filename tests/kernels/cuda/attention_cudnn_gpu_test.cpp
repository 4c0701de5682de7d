#include "kernels/attention/attention_cudnn.h"
#include "tests/support/gpu_twin.h"
#include "tests/support/tensors.h"

namespace sluice::test {
namespace {

constexpr Device kGpu{Device::Kind::cuda, 0};

struct CudnnShape {
  const char* name = "";
  int64_t B = 1, T = 1, Hq = 1, Hkv = 1, hd = 64;
  int64_t window = 0;
  std::vector<std::vector<int64_t>> starts = {};
  int64_t first = 0;
  double scale = 0;
  bool one_document = false;
};

// All tensors of one call, sliced from a projection as a layer's are.
struct Tensors {
  Tensors(Side& side, const CudnnShape& s)
      : B(s.B),
        T(s.T),
        Hq(s.Hq),
        Hkv(s.Hkv),
        hd(s.hd),
        qkv(side.normal({B, T, (Hq + 2 * Hkv) * hd}, 1, 0, 64)),
        dy(side.normal({B, T, Hq, hd})),
        doc_begin(side.copy_of(documents(B, T, s.starts, s.first))),
        y(side.output("y", {B, T, Hq, hd}, side.dtype())),
        lse(side.output("lse", {B, T, Hq}, side.stat())),
        dqkv(side.output("dqkv", qkv.dims, side.dtype(), 64)) {}

  AttentionForward forward(const CudnnShape& s, AttentionBackend backend) const {
    return {.q = q(qkv),
            .k = k(qkv),
            .v = v(qkv),
            .doc_begin = doc_begin,
            .y = y,
            .lse = lse,
            .window = s.window,
            .scale = s.scale,
            .backend = backend,
            .one_document = s.one_document};
  }
  AttentionBackward backward(const CudnnShape& s, AttentionBackend backend) const {
    return {.dy = dy,
            .q = q(qkv),
            .k = k(qkv),
            .v = v(qkv),
            .doc_begin = doc_begin,
            .y = y,
            .lse = lse,
            .dq = q(dqkv),
            .dk = k(dqkv),
            .dv = v(dqkv),
            .window = s.window,
            .scale = s.scale,
            .backend = backend,
            .one_document = s.one_document};
  }
  TensorView q(const TensorView& all) const { return all.columns(0, {Hq, hd}); }
  TensorView k(const TensorView& all) const { return all.columns(Hq * hd, {Hkv, hd}); }
  TensorView v(const TensorView& all) const { return all.columns((Hq + Hkv) * hd, {Hkv, hd}); }

  int64_t B, T, Hq, Hkv, hd;
  TensorView qkv, dy, doc_begin, y, lse, dqkv;
};

void run(Side& side, const CudnnShape& s, AttentionBackend backend) {
  const Tensors tensors(side, s);
  const AttentionForward forward = tensors.forward(s, backend);
  const AttentionBackward backward = tensors.backward(s, backend);
  if (side.ctx().device.is_cuda() && backend == AttentionBackend::cudnn) {
    const bool takes = side.dtype() == DType::bf16;
    EXPECT_EQ(cuda::cudnn_scratch_bytes(kGpu, forward).has_value(), takes);
    EXPECT_EQ(cuda::cudnn_scratch_bytes(kGpu, backward).has_value(), takes);
  }
  attention_forward(side.ctx(), forward);
  attention_backward(side.ctx(), backward);
}

// Skips where there is no GPU, or no cuDNN.
class AttentionCudnn : public testing::TestWithParam<CudnnShape> {
 protected:
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
    const std::string absence = cuda::why_no_cudnn(kGpu);
    if (!absence.empty()) GTEST_SKIP() << absence;
  }
};

class AttentionCudnnGpu : public AttentionCudnn {};
TEST_P(AttentionCudnnGpu, AgreesWithCpu) {
  check_on_gpu([](Side& side) { run(side, GetParam(), AttentionBackend::cudnn); },
               {.arena_bytes = size_t{64} << 20});
}

std::vector<CudnnShape> shapes() {
  return {
      {.name = "head_dim_64", .B = 2, .T = 256, .Hq = 4, .Hkv = 4},
      {.name = "head_dim_128", .B = 2, .T = 256, .Hq = 4, .Hkv = 4, .hd = 128},
      {.name = "head_dim_80", .T = 150, .Hq = 2, .Hkv = 2, .hd = 80},
      {.name = "grouped", .B = 2, .T = 300, .Hq = 8, .Hkv = 2, .hd = 128},
      {.name = "one_key_head", .T = 257, .Hq = 6, .Hkv = 1},
      {.name = "short", .B = 3, .T = 17, .Hq = 2, .Hkv = 1},
      {.name = "two_tokens", .B = 2, .T = 2, .Hq = 2, .Hkv = 2, .hd = 128},
      {.name = "window", .B = 2, .T = 450, .Hq = 2, .Hkv = 1, .hd = 128, .window = 130},
      {.name = "small_window", .T = 280, .Hq = 2, .Hkv = 2, .window = 5},
      {.name = "documents",
       .B = 2,
       .T = 420,
       .Hq = 4,
       .Hkv = 2,
       .hd = 128,
       .starts = {{1, 3, 64, 100, 128, 255, 390}, {63, 65, 128, 300}},
       .first = -3},
      {.name = "documents_and_window",
       .B = 2,
       .T = 390,
       .Hq = 2,
       .Hkv = 2,
       .window = 70,
       .starts = {{10, 64, 200}, {}}},
      {.name = "longer", .T = 1500, .Hq = 2, .Hkv = 1, .hd = 128, .starts = {{600}}},
      {.name = "one_document",
       .B = 2,
       .T = 300,
       .Hq = 4,
       .Hkv = 2,
       .hd = 128,
       .first = -2,
       .one_document = true},
      {.name = "own_scale", .T = 200, .Hq = 2, .Hkv = 2, .scale = 0.2},
  };
}
const auto kName = [](const auto& info) { return std::string(info.param.name); };
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionCudnnGpu, testing::ValuesIn(shapes()), kName);

// Where the backward runs in parts, the CPU would take minutes: beside our own kernels.
class AttentionCudnnPartsGpu : public AttentionCudnn {};
TEST_P(AttentionCudnnPartsGpu, AgreesWithOwn) {
  if (max_test_elements() < int64_t{1} << 24) GTEST_SKIP() << "too large";
  constexpr size_t kArena = size_t{5} << 28;
  Side own(kGpu, DType::bf16, DType::bf16, 7, kArena),
      theirs(kGpu, DType::bf16, DType::bf16, 7, kArena);
  run(own, GetParam(), AttentionBackend::own);
  run(theirs, GetParam(), AttentionBackend::cudnn);
  for (size_t i = 0; i < own.outputs().size(); ++i) {
    SCOPED_TRACE(own.outputs()[i].name);
    EXPECT_LE(error_by_norm(theirs.download(theirs.outputs()[i].view),
                            own.download(own.outputs()[i].view)),
              1e-2);
  }
}
INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionCudnnPartsGpu,
    testing::ValuesIn(std::vector<CudnnShape>{
        {.name = "of_heads", .T = 8192, .Hq = 12, .Hkv = 6, .starts = {{100, 5000}}},
        {.name = "of_rows", .B = 6, .T = 4096, .Hq = 8, .Hkv = 8, .hd = 128}}),
    kName);

// A step on a GPU is one graph. Plans are built before.
class AttentionCudnnGpuEdges : public AttentionCudnn {};
TEST_P(AttentionCudnnGpuEdges, RunsInAGraph) {
  Side eager(kGpu, DType::bf16, DType::bf16, 7, size_t{16} << 20);
  Side captured(kGpu, DType::bf16, DType::bf16, 7, size_t{16} << 20);
  run(eager, GetParam(), AttentionBackend::cudnn);
  const Tensors tensors(captured, GetParam());
  const AttentionForward forward = tensors.forward(GetParam(), AttentionBackend::cudnn);
  const AttentionBackward backward = tensors.backward(GetParam(), AttentionBackend::cudnn);
  DeviceGraph graph;
  graph.capture(captured.ctx().stream, [&] {
    attention_forward(captured.ctx(), forward);
    attention_backward(captured.ctx(), backward);
  });
  graph.launch(captured.ctx().stream);
  for (size_t i = 0; i < eager.outputs().size(); ++i) {
    SCOPED_TRACE(eager.outputs()[i].name);
    EXPECT_TRUE(eager.download_elements(eager.outputs()[i].view) ==
                captured.download_elements(captured.outputs()[i].view));
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionCudnnGpuEdges,
                         testing::Values(CudnnShape{
                             .name = "grouped", .B = 2, .T = 300, .Hq = 4, .Hkv = 2}),
                         kName);

TEST(AttentionCudnnGpuRest, OwnKernelsTakeIt) {
  check_on_gpu([](Side& side) {
    const CudnnShape odd{.T = 70, .Hq = 2, .Hkv = 1, .hd = 12};
    const Tensors tensors(side, odd);
    const AttentionForward forward = tensors.forward(odd, AttentionBackend::cudnn);
    if (side.ctx().device.is_cuda()) {
      EXPECT_FALSE(cuda::cudnn_scratch_bytes(kGpu, forward).has_value());
    }
    attention_forward(side.ctx(), forward);
    attention_backward(side.ctx(), tensors.backward(odd, AttentionBackend::cudnn));
  });
}

}  // namespace
}  // namespace sluice::test
