// All parameters of a model, under dotted names, in one flat arena of values and one of gradients.
//
// Layers add their parameters when they are built; freeze() then lays them out: in sections by who
// reduces their gradients and by how they are read, in the order they were added, each starting at
// a multiple of 256 bytes. Padding is zero and belongs to nobody. So gradient buckets and optimizer
// shards are plain spans of the arenas.
//
// A parameter may be cut along its first dim: the store then holds one of `shards` equal parts.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/initial_values/initial_values.h"

namespace sluice {

enum class ReduceGroup : uint8_t {
  dense,   // reduced over dp x cp
  expert,  // reduced over (dp / ep) x cp
};

struct ParameterFlags {
  bool decay = true;     // weight decay applies (not to A_log, D, dt_bias, norms, biases)
  bool precise = false;  // read as its f32 master in a bf16 model, not rounded
  ReduceGroup group = ReduceGroup::dense;
  bool frozen = false;   // no optimizer update
  bool product = false;  // its gradient is written by matrix products alone, each element by one in
                         // a backward: by grad_beta() they add to it or overwrite it
  double lr_scale = 1;
  int64_t shards = 1;  // equal parts along the first dim, of which this store holds number `shard`
  int64_t shard = 0;
};

// Rows of a packed projection that other programs hold as tensors of their own.
struct ParameterPart {
  std::string name;
  int64_t rows = 0;
};

struct Parameter {
  std::string name;
  Dims global_dims;   // of the whole parameter
  Dims dims;          // of what is held here
  int64_t first = 0;  // index along the first dim at which that begins
  Initializer init;
  ParameterFlags flags;
  std::vector<ParameterPart> parts;  // of the last-but-one dim; empty: one part
  int64_t offset = 0;                // first element in the flat arenas, after freeze()

  // Index in the whole parameter (row-major) of the first element held here.
  int64_t first_element() const {
    return first == 0 ? 0 : first * (global_dims.numel() / global_dims[0]);
  }
};

struct ParameterId {
  int32_t index = -1;
};

// Elements [begin, end) of a flat arena.
struct FlatSpan {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
};

// Parameters that lie together: of one reduction group and, in a bf16 model, read alike.
struct ArenaSection {
  ReduceGroup group = ReduceGroup::dense;
  bool rounded = false;  // read as their bf16 copies
  FlatSpan span = {};
};

// The sections of the two groups are padded to a multiple of so many elements each, so that they
// can be cut into equal shards.
struct ArenaUnits {
  int64_t dense = 1;
  int64_t expert = 1;
};

class ParameterStore {
 public:
  // dtype: what the model computes in. f32, f64: the values are the masters. bf16: the masters are
  // f32, and parameters that are not precise are read as their rounded copies.
  explicit ParameterStore(DType dtype, Device device = kCpu) : dtype_(dtype), device_(device) {}

  // `dims` are those of the whole parameter. Throws Error(bug) if the name exists, the store is
  // frozen, or the first dim does not divide into flags.shards.
  ParameterId add(std::string name, const Dims& dims, Initializer init, ParameterFlags flags = {},
                  std::vector<ParameterPart> parts = {});

  // Lays out the arenas. With allocate = false (planning) views hold null.
  void freeze(bool allocate = true, const ArenaUnits& units = {});
  // Draws the initial values where the store lies, and waits for them. The bits are the same on CPU
  // and GPU, and for any parts.
  void initialise(uint64_t seed);

  DType dtype() const { return dtype_; }
  DType master_dtype() const { return stat_dtype(dtype_); }
  Device device() const { return device_; }
  int64_t flat_size() const { return flat_size_; }  // elements of an arena, padding included
  const std::vector<ArenaSection>& sections() const { return sections_; }  // ascending, none empty
  int64_t num_elements() const;  // of all parameters, whole and without padding
  const std::vector<Parameter>& parameters() const { return parameters_; }
  const Parameter& parameter(ParameterId id) const { return parameters_[id.index]; }
  ParameterId find(std::string_view name) const;  // index -1 if there is none

  // What layers read: the master, or its rounded copy.
  TensorView value(ParameterId id) const {
    const bool is_rounded = rounded_ && !parameter(id).flags.precise;
    return view(is_rounded ? rounded_ : values_, id);
  }
  // (flat_size) the masters. In a bf16 model a rank that owns but a shard of a rounded section
  // keeps that shard's up to date; of the rest the copies.
  TensorView values() const { return values_; }
  TensorView rounded() const { return rounded_; }  // (flat_size) bf16; absent in f32 and f64
  // After the masters were written by anything but an update: brings the copies up to date, and
  // waits for the stream.
  void round_values(Stream stream) const;
  int64_t value_bytes() const;  // of masters and copies
  // The view of a parameter that may not exist (index -1): then one without dims.
  TensorView optional_value(ParameterId id) const {
    return id.index < 0 ? TensorView{} : value(id);
  }
  TensorView optional_grad(ParameterId id) const { return id.index < 0 ? TensorView{} : grad(id); }

  // Backward passes add to whatever flat tensor is bound (master_dtype, flat_size elements).
  void bind_gradients(TensorView flat);
  // The same for one backward, which starts anew whatever the tensor holds: zeroes what it adds to,
  // and has products overwrite the rest. Of a step with one micro-batch that saves a pass that
  // writes all gradients, and most reading of them.
  void begin_gradients(const Context& ctx, TensorView flat);
  double grad_beta(ParameterId id) const {
    return products_overwrite_ && parameter(id).flags.product ? 0 : 1;
  }
  TensorView grad(ParameterId id) const { return view(gradients_, id); }
  TensorView gradients() const { return gradients_; }

  // The parameter's elements within any flat tensor of this layout (values, moments, gradients).
  TensorView view(TensorView flat, ParameterId id) const;
  // End of the parameter's storage, padding included: where the next one starts.
  int64_t padded_end(ParameterId id) const;

 private:
  void add_section(ReduceGroup group, bool rounded, int64_t unit);

  DType dtype_;
  Device device_;
  std::vector<Parameter> parameters_;
  bool frozen_ = false;
  int64_t flat_size_ = 0;
  std::vector<ArenaSection> sections_;
  std::vector<FlatSpan> products_;  // ascending
  Buffer storage_;
  TensorView values_;
  Buffer rounded_storage_;
  TensorView rounded_;
  TensorView gradients_;
  bool products_overwrite_ = false;
};

}  // namespace sluice
