// What the convolution of a mixer reads before this rank's first token: the last K-1 inputs of the
// ranks before it or, at a row's start, of the step before.
// B batch, T tokens on this rank, K conv width, C channels
#pragma once

#include "layers/layer_build.h"
#include "layers/mixers/passed.h"
#include "parallel/sequence/halo_exchange.h"

namespace sluice {

class ConvolutionHalo {
 public:
  ConvolutionHalo(const LayerBuild& build, int64_t conv_width, int64_t channels);

  std::vector<StateTensor> received_spec(const Rows& rows) const;

  struct Forward {
    TensorView x = {};                 // (B, T, C), the convolution's input on this rank
    const Passed& passed;              // halo is written unless filled
    const Carried* carried = nullptr;  // state tensor `kTail` of each list
    Meanwhile meanwhile = {};
  };
  void forward(const Context& ctx, const Rows& rows, const Forward& args) const;

  // Adds to dx what the later ranks' halos give to this rank's inputs. Without several ranks dhalo
  // goes nowhere: gradients end at a row's start.
  void backward(const Context& ctx, const Rows& rows, const TensorView& dhalo, const TensorView& dx,
                const Meanwhile& meanwhile) const;

  static constexpr size_t kTail = 0;  // its place in state_spec

 private:
  DType dtype_;
  bool carries_;
  int64_t width_, channels_;  // K - 1, C
  int ranks_;
  HaloExchange exchange_;
};

}  // namespace sluice
