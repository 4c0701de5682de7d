// The graphs follow the patterns that cuDNN's engines recognise; an engine then runs all of a graph
// in one or a few kernels, and none of the (T, T) tensors is ever in memory.
#include "kernels/attention/attention_cudnn_graphs.h"

#include <utility>

namespace sluice::cuda::cudnn {

namespace {

constexpr cudnnDataType_t kFloat = CUDNN_DATA_FLOAT;
constexpr cudnnDataType_t kBf16 = CUDNN_DATA_BFLOAT16;
constexpr cudnnDataType_t kInt = CUDNN_DATA_INT32;
constexpr cudnnDataType_t kBool = CUDNN_DATA_BOOLEAN;

Dims4 packed(const Dims4& dims) {
  return {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
}

// The last two dims and their strides exchanged.
Dims4 transposed(const Dims4& dims) { return {dims[0], dims[1], dims[3], dims[2]}; }

class Builder {
 public:
  Builder(const Library& library, const AttentionProblem& problem)
      : p_(problem), graph_(library), scores_dims_{p_.B, p_.Hq, p_.T, p_.T} {}

  // (B, heads, T, hd), whose tokens are `stride` elements apart.
  Node heads(int64_t id, int64_t count, int64_t stride) {
    return graph_.tensor(id, kBf16, {p_.B, count, p_.T, p_.hd}, {p_.T * stride, p_.hd, stride, 1});
  }
  Node transposed_heads(int64_t id, int64_t count, int64_t stride) {
    return graph_.tensor(id, kBf16, {p_.B, count, p_.hd, p_.T}, {p_.T * stride, p_.hd, 1, stride});
  }
  Node per_query(int64_t id) {
    const Dims4 dims{p_.B, p_.Hq, p_.T, 1};
    return graph_.tensor(id, kFloat, dims, packed(dims));
  }
  Node number(int64_t id, cudnnDataType_t type = kFloat) { return graph_.number(id, type); }

  Node between(cudnnDataType_t type, const Dims4& dims) {
    return graph_.between(type, dims, packed(dims));
  }
  // A pointwise result of the shape of x.
  Node map(cudnnPointwiseMode_t mode, std::initializer_list<Node> inputs) {
    const Node y = between(kFloat, inputs.begin()->dims);
    graph_.pointwise(mode, kFloat, inputs, y);
    return y;
  }
  Node scaled_scores(const Node& q, const Node& transposed_k, const Node& scale) {
    const Node scores = between(kFloat, scores_dims_);
    graph_.matmul(q, transposed_k, scores);
    return map(CUDNN_POINTWISE_MUL, {scores, scale});
  }
  // What a query does not see gets the lowest number.
  Node masked(Node scores) {
    const Node lowest = number(kLowest);
    scores =
        select(scores, compare(CUDNN_POINTWISE_CMP_GE, index(scores, 2), index(scores, 3)), lowest);
    if (p_.window > 0) {
      const Node end = between(kInt, scores_dims_);
      graph_.pointwise(CUDNN_POINTWISE_ADD, kInt, {index(scores, 3), number(kWindow, kInt)}, end);
      scores = select(scores, compare(CUDNN_POINTWISE_CMP_GT, end, index(scores, 2)), lowest);
    }
    if (!p_.documents) return scores;
    const Node begin =
        graph_.tensor(kDocBegin, kInt, {p_.B, 1, p_.T, 1}, {p_.doc_stride, p_.doc_stride, 1, 1});
    return select(scores, compare(CUDNN_POINTWISE_CMP_GE, index(scores, 3), begin), lowest);
  }
  // (B, Hq, T, 1) from (B, Hq, T, n).
  Node reduced(cudnnReduceTensorOp_t op, const Node& x) {
    const Node y = between(kFloat, {p_.B, p_.Hq, p_.T, 1});
    graph_.reduce(op, x, y);
    return y;
  }
  // (T keys, T queries) of (T queries, T keys), rounded: the left factor of dk and dv.
  Node transposed_scores(const Node& x) {
    const Node y = graph_.between(kBf16, transposed(scores_dims_),
                                  {p_.Hq * p_.T * p_.T, p_.T * p_.T, 1, p_.T});
    graph_.reshape(x, y);
    return y;
  }
  // y = a b, where y has key-value heads: with grouped queries the sum over a group.
  void matmul_to_key_heads(const Node& a, const Node& b, const Node& y) {
    if (p_.Hq == p_.Hkv) return graph_.matmul(a, b, y);
    const Node all = between(kBf16, {p_.B, p_.Hq, p_.T, p_.hd});
    graph_.matmul(a, b, all);
    graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, all, y);
  }

  Graph& graph() { return graph_; }
  const Dims4& scores_dims() const { return scores_dims_; }

 private:
  Node index(const Node& scores, int64_t axis) {
    const Node y = between(kInt, scores_dims_);
    graph_.pointwise(CUDNN_POINTWISE_GEN_INDEX, kFloat, {scores}, y, axis);
    return y;
  }
  Node compare(cudnnPointwiseMode_t mode, const Node& a, const Node& b) {
    const Node y = between(kBool, scores_dims_);
    graph_.pointwise(mode, kBool, {a, b}, y);
    return y;
  }
  Node select(const Node& scores, const Node& seen, const Node& otherwise) {
    const Node y = between(kFloat, scores_dims_);
    graph_.pointwise(CUDNN_POINTWISE_BINARY_SELECT, kFloat, {scores, otherwise, seen}, y);
    return y;
  }

  AttentionProblem p_;
  Graph graph_;
  Dims4 scores_dims_;
};

}  // namespace

Graph attention_forward_graph(const Library& library, const AttentionProblem& p) {
  Builder b(library, p);
  Graph& g = b.graph();
  const Node q = b.heads(kQ, p.Hq, p.q_stride);
  const Node transposed_k = b.transposed_heads(kK, p.Hkv, p.k_stride);
  const Node v = b.heads(kV, p.Hkv, p.v_stride);
  const Node scores = b.masked(b.scaled_scores(q, transposed_k, b.number(kScale)));
  const Node largest = b.reduced(CUDNN_REDUCE_TENSOR_MAX, scores);
  const Node weights = b.map(CUDNN_POINTWISE_EXP, {b.map(CUDNN_POINTWISE_SUB, {scores, largest})});
  const Node sum = b.reduced(CUDNN_REDUCE_TENSOR_ADD, weights);
  g.pointwise(CUDNN_POINTWISE_ADD, kFloat, {largest, b.map(CUDNN_POINTWISE_LOG, {sum})},
              b.per_query(kStats));
  const Node probabilities = b.between(kBf16, b.scores_dims());
  g.pointwise(CUDNN_POINTWISE_DIV, kFloat, {weights, sum}, probabilities);
  g.matmul(probabilities, v, b.heads(kY, p.Hq, p.y_stride));
  return std::move(g);
}

Graph attention_backward_graph(const Library& library, const AttentionProblem& p) {
  Builder b(library, p);
  Graph& g = b.graph();
  const Node q = b.heads(kQ, p.Hq, p.q_stride), dy = b.heads(kDy, p.Hq, p.dy_stride);
  const Node transposed_k = b.transposed_heads(kK, p.Hkv, p.k_stride);
  const Node transposed_v = b.transposed_heads(kV, p.Hkv, p.v_stride);
  const Node scale = b.number(kScale);

  const Node dy_y = b.per_query(kDyY);
  const Node products = b.map(CUDNN_POINTWISE_MUL, {dy, b.heads(kY, p.Hq, p.y_stride)});
  g.pointwise(CUDNN_POINTWISE_MUL, kFloat,
              {b.reduced(CUDNN_REDUCE_TENSOR_ADD, products), b.number(kOne)}, dy_y);

  const Node shifted =
      b.map(CUDNN_POINTWISE_SUB, {b.scaled_scores(q, transposed_k, scale), b.per_query(kStats)});
  const Node probabilities = b.map(CUDNN_POINTWISE_EXP, {b.masked(shifted)});
  b.matmul_to_key_heads(b.transposed_scores(probabilities), dy, b.heads(kDv, p.Hkv, p.dv_stride));

  const Node dp = b.between(kFloat, b.scores_dims());
  g.matmul(dy, transposed_v, dp);
  const Node ds = b.map(
      CUDNN_POINTWISE_MUL,
      {b.map(CUDNN_POINTWISE_MUL, {b.map(CUDNN_POINTWISE_SUB, {dp, dy_y}), probabilities}), scale});
  b.matmul_to_key_heads(b.transposed_scores(ds), q, b.heads(kDk, p.Hkv, p.dk_stride));

  const Node k =
      g.between(kFloat, {p.B, p.Hkv, p.T, p.hd}, {p.T * p.k_stride, p.hd, p.k_stride, 1});
  g.reshape(transposed_k, k);
  g.matmul(ds, k, b.heads(kDq, p.Hq, p.dq_stride));
  return std::move(g);
}

}  // namespace sluice::cuda::cudnn
