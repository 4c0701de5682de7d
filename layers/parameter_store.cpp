#include "layers/parameter_store.h"

#include <utility>

#include "kernels/core/device_memory.h"
#include "kernels/elementwise/elementwise.h"

namespace sluice {

ParameterId ParameterStore::add(std::string name, const Dims& dims, Initializer init,
                                ParameterFlags flags, std::vector<ParameterPart> parts) {
  SLUICE_CHECK(!frozen_, "parameter '", name, "' was added after freeze()");
  SLUICE_CHECK(find(name).index < 0, "parameter '", name, "' was added twice");
  SLUICE_CHECK(dims.rank > 0 && flags.shards >= 1 && dims[0] % flags.shards == 0 &&
                   flags.shard >= 0 && flags.shard < flags.shards,
               "parameter '", name, "' of ", to_string(dims), ": no part ", flags.shard, " of ",
               flags.shards, " equal parts along its first dim");
  Dims local = dims;
  local.size[0] /= flags.shards;
  parameters_.push_back({.name = std::move(name),
                         .global_dims = dims,
                         .dims = local,
                         .first = local[0] * flags.shard,
                         .init = std::move(init),
                         .flags = flags,
                         .parts = std::move(parts)});
  return {int32_t(parameters_.size()) - 1};
}

ParameterId ParameterStore::find(std::string_view name) const {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (parameters_[i].name == name) return {int32_t(i)};
  }
  return {};
}

void ParameterStore::freeze(bool allocate, const ArenaUnits& units) {
  SLUICE_CHECK(!frozen_, "freeze() was called twice");
  SLUICE_CHECK(units.dense >= 1 && units.expert >= 1, "units of ", units.dense, " and ",
               units.expert, " elements");
  frozen_ = true;
  for (const ReduceGroup group : {ReduceGroup::dense, ReduceGroup::expert}) {
    const int64_t unit = group == ReduceGroup::dense ? units.dense : units.expert;
    add_section(group, /*rounded=*/false, unit);
    if (dtype_ == DType::bf16) add_section(group, /*rounded=*/true, unit);
  }
  if (allocate) storage_ = Buffer(flat_size_ * size_of(master_dtype()), device_);
  values_ = TensorView(storage_.data(), {flat_size_}, master_dtype(), device_);
  if (dtype_ != DType::bf16) return;
  if (allocate) rounded_storage_ = Buffer(flat_size_ * size_of(dtype_), device_);
  rounded_ = TensorView(rounded_storage_.data(), {flat_size_}, dtype_, device_);
}

void ParameterStore::add_section(ReduceGroup group, bool rounded, int64_t unit) {
  ArenaSection section{.group = group, .rounded = rounded, .span = {flat_size_, flat_size_}};
  int64_t& end = section.span.end;
  for (Parameter& parameter : parameters_) {
    const bool is_rounded = dtype_ == DType::bf16 && !parameter.flags.precise;
    if (parameter.flags.group != group || is_rounded != rounded) continue;
    parameter.offset = end;
    if (parameter.flags.product) products_.push_back({end, end + parameter.dims.numel()});
    end += align_up(parameter.dims.numel() * size_of(master_dtype())) / size_of(master_dtype());
  }
  if (section.span.size() == 0) return;
  end = section.span.begin + (section.span.size() + unit - 1) / unit * unit;
  flat_size_ = end;
  sections_.push_back(section);
}

void ParameterStore::round_values(Stream stream) const {
  if (!rounded_) return;
  Arena none("none", 0, device_);
  convert({.device = device_, .stream = stream, .saved = &none, .scratch = &none, .rng = {}},
          values_, rounded_);
  stream.sync();
}

int64_t ParameterStore::value_bytes() const {
  return flat_size_ * int64_t(size_of(master_dtype()) + (rounded_ ? size_of(dtype_) : 0));
}

void ParameterStore::initialise(uint64_t seed) {
  SLUICE_CHECK(values_.data != nullptr, "initialise() needs allocated values");
  const OwnedStream stream(device_);
  Arena none("none", 0, device_);
  const Context ctx{
      .device = device_, .stream = stream, .saved = &none, .scratch = &none, .rng = {}};
  for (size_t p = 0; p < parameters_.size(); ++p) {
    const Parameter& parameter = parameters_[p];
    initial_values(ctx, {.initializer = parameter.init,
                         .key = {.seed = seed, .stream = hash_name(parameter.name)},
                         .first = parameter.first_element(),
                         .values = view(values_, {int32_t(p)})});
  }
  round_values(stream);
  Stream(stream).sync();
}

int64_t ParameterStore::num_elements() const {
  int64_t count = 0;
  for (const Parameter& parameter : parameters_) count += parameter.global_dims.numel();
  return count;
}

void ParameterStore::bind_gradients(TensorView flat) {
  expect("gradients", flat, {flat_size_}, master_dtype(), device_);
  gradients_ = flat;
  products_overwrite_ = false;
}

void ParameterStore::begin_gradients(const Context& ctx, TensorView flat) {
  bind_gradients(flat);
  products_overwrite_ = true;
  int64_t begin = 0;  // of what products leave alone, padding included
  const auto zero_until = [&](int64_t end) {
    if (end > begin) zero(ctx, flat.columns(begin, {end - begin}));
  };
  for (const FlatSpan& product : products_) {
    zero_until(product.begin);
    begin = product.end;
  }
  zero_until(flat_size_);
}

TensorView ParameterStore::view(TensorView flat, ParameterId id) const {
  SLUICE_CHECK(id.index >= 0 && id.index < int64_t(parameters_.size()), "no parameter ", id.index);
  const Parameter& parameter = parameters_[id.index];
  char* const data = static_cast<char*>(flat.data);
  const int64_t bytes = parameter.offset * int64_t(size_of(flat.dtype));
  return TensorView(data == nullptr ? nullptr : data + bytes, parameter.dims, flat.dtype,
                    flat.device);
}

int64_t ParameterStore::padded_end(ParameterId id) const {
  const Parameter& parameter = parameters_[id.index];
  return parameter.offset + int64_t(align_up(parameter.dims.numel() * size_of(master_dtype())) /
                                    size_of(master_dtype()));
}

}  // namespace sluice
