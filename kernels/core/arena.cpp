#include "kernels/core/arena.h"

#include <algorithm>
#include <utility>

#include "kernels/core/device_memory.h"

namespace sluice {

Buffer::Buffer(size_t bytes, Device device)
    : data_(allocate_bytes(bytes, device)), bytes_(bytes), device_(device) {}

Buffer::~Buffer() { free_bytes(data_, device_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

Arena::Arena(const char* name, size_t capacity, Device device)
    : name_(name), device_(device), buffer_(capacity, device) {}

Arena Arena::counting(const char* name, Device device) { return Arena(name, device); }

void* Arena::take(size_t bytes) {
  const size_t begin = used_;
  const size_t end = begin + align_up(bytes);
  SLUICE_CHECK(counting_ || end <= buffer_.bytes(), "arena '", name_, "' holds ", buffer_.bytes(),
               " bytes, ", end, " are needed: the counting run differed from this one");
  used_ = end;
  peak_ = std::max(peak_, used_);
  return counting_ ? nullptr : static_cast<char*>(buffer_.data()) + begin;
}

TensorView Arena::alloc(const Dims& dims, DType dtype) {
  return TensorView(take(dims.numel() * size_of(dtype)), dims, dtype, device_);
}

TensorView Arena::alloc_padded_rows(const Dims& dims, DType dtype) {
  const int64_t stride = align_up(dims.row_size() * size_of(dtype), 64) / size_of(dtype);
  TensorView view(take(dims.rows() * stride * size_of(dtype)), dims, dtype, device_);
  view.row_stride = stride;
  return view;
}

void Arena::release(Mark mark) {
  SLUICE_DCHECK(mark <= used_, "arena '", name_, "' released out of order");
  used_ = mark;
}

}  // namespace sluice
