// A linear map of a layer, y = x W^T + b, over parameters in the store.
#pragma once

#include <string>

#include "layers/initializers.h"
#include "layers/layer_build.h"

namespace sluice {

struct LinearSpec {
  int64_t in = 0;
  int64_t out = 0;
  bool bias = false;
  double scale = 1;  // of the initial weights, over U(-in^(-1/2), in^(-1/2))
  std::vector<ParameterPart> parts = {};
};

class Linear {
 public:
  Linear() = default;
  // Adds <prefix><name>.weight (out, in) and, if asked for, <prefix><name>.bias (out).
  Linear(const LayerBuild& build, const std::string& name, const LinearSpec& spec);

  // The same map with only the outputs [begin, begin + count): a slice of a packed projection, over
  // the same parameters.
  Linear outputs(int64_t begin, int64_t count) const;

  // x (..., in) -> y (..., out); rows may be strided.
  void forward(const Context& ctx, const ConstTensorView& x, const TensorView& y) const;
  // dW = dy^T x, or dW += dy^T x (see ParameterStore::begin_gradients()); db += sum of dy. Once in
  // a backward for each output.
  void backward_weight(const Context& ctx, const ConstTensorView& x,
                       const ConstTensorView& dy) const;
  // dx = dy W, or dx += dy W.
  void backward_data(const Context& ctx, const ConstTensorView& dy, const TensorView& dx,
                     bool accumulate = false) const;

  ParameterId weight() const { return weight_; }

 private:
  TensorView rows_of(const TensorView& weight) const { return weight.row_range(begin_, count_); }
  TensorView part_of(const TensorView& bias) const { return bias.columns(begin_, {count_}); }

  ParameterStore* store_ = nullptr;
  ParameterId weight_, bias_;
  int64_t begin_ = 0, count_ = 0;  // of the outputs
};

}  // namespace sluice
