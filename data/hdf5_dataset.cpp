#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "data/hdf5_file.h"
#include "data/hdf5_handle.h"
#include "kernels/core/error.h"

namespace sluice {

using hdf5::Handle;

namespace {

constexpr int kMaxDims = 5;
// What deflate can shrink at most, a little rounded up: bounds the extent by the bytes stored.
constexpr int64_t kMaxDeflateRatio = 1100;

herr_t keep_first(unsigned index, const H5E_error2_t* error, void* out) {
  if (index == 0 && error->desc != nullptr) *static_cast<std::string*>(out) = error->desc;
  return 0;
}

}  // namespace

namespace hdf5 {

void prepare_thread() {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  H5PLset_loading_state(0);
}

void require_thread_safety() {
  hbool_t safe = false;
  if (H5is_library_threadsafe(&safe) < 0 || !safe) {
    throw UsageError(
        "HDF5 was built without thread safety, which sluice needs; link the distribution's libhdf5 "
        "(Debian, Ubuntu) or one built with --enable-threadsafe");
  }
}

std::string last_message() {
  std::string message;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &message);
  return message.empty() ? "no message" : message;
}

hid_t file_type(StoredType type) {
  switch (type) {
    case StoredType::f32:
      return H5T_IEEE_F32LE;
    case StoredType::f64:
      return H5T_IEEE_F64LE;
    case StoredType::i64:
      return H5T_STD_I64LE;
    case StoredType::i32:
      return H5T_STD_I32LE;
    case StoredType::u32:
      return H5T_STD_U32LE;
    case StoredType::u16:
      return H5T_STD_U16LE;
    case StoredType::u8:
      return H5T_STD_U8LE;
  }
  throw Error(ExitCode::bug, "no such stored type");
}

hid_t memory_type(StoredType type) {
  switch (type) {
    case StoredType::f32:
      return H5T_NATIVE_FLOAT;
    case StoredType::f64:
      return H5T_NATIVE_DOUBLE;
    case StoredType::i64:
      return H5T_NATIVE_INT64;
    case StoredType::i32:
      return H5T_NATIVE_INT32;
    case StoredType::u32:
      return H5T_NATIVE_UINT32;
    case StoredType::u16:
      return H5T_NATIVE_UINT16;
    case StoredType::u8:
      return H5T_NATIVE_UINT8;
  }
  throw Error(ExitCode::bug, "no such stored type");
}

}  // namespace hdf5

const char* name_of(StoredType type) {
  static constexpr const char* kNames[] = {"f32", "f64", "i64", "i32", "u32", "u16", "u8"};
  return kNames[size_t(type)];
}

size_t size_of(StoredType type) {
  static constexpr size_t kSizes[] = {4, 8, 8, 4, 4, 2, 1};
  return kSizes[size_t(type)];
}

StoredType stored_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return StoredType::f64;
    case DType::f32:
      return StoredType::f32;
    case DType::i64:
      return StoredType::i64;
    case DType::i32:
      return StoredType::i32;
    case DType::u16:
      return StoredType::u16;
    case DType::u8:
      return StoredType::u8;
    case DType::bf16:
      break;
  }
  throw Error(ExitCode::bug, concat("files hold no ", name_of(dtype)));
}

int64_t DatasetInfo::numel() const {
  int64_t product = 1;
  for (const int64_t dim : dims) product *= dim;
  return product;
}

Hdf5Dataset::Hdf5Dataset(std::string path, std::string name, int64_t id)
    : path_(std::move(path)), name_(std::move(name)), id_(id) {}

Hdf5Dataset::Hdf5Dataset(Hdf5Dataset&& other) noexcept
    : path_(std::move(other.path_)),
      name_(std::move(other.name_)),
      id_(std::exchange(other.id_, -1)),
      info_(std::move(other.info_)),
      chunk_(other.chunk_),
      checksummed_(other.checksummed_) {}

Hdf5Dataset& Hdf5Dataset::operator=(Hdf5Dataset&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(name_, other.name_);
  std::swap(id_, other.id_);
  std::swap(info_, other.info_);
  std::swap(chunk_, other.chunk_);
  std::swap(checksummed_, other.checksummed_);
  return *this;
}

Hdf5Dataset::~Hdf5Dataset() {
  if (id_ < 0) return;
  hdf5::prepare_thread();
  H5Dclose(id_);
}

void Hdf5Dataset::fail(const std::string& what) const {
  throw DataError(fmt::format("{}: dataset /{}: {}", path_, name_, what));
}

void Hdf5Dataset::check(int64_t file_bytes) {
  check_type();
  check_extent();
  check_storage(file_bytes);
}

void Hdf5Dataset::check_type() {
  const Handle type(H5Dget_type(id_), H5Tclose);
  if (!type.valid()) fail("cannot read its type: " + hdf5::last_message());
  for (const StoredType candidate :
       {StoredType::f32, StoredType::f64, StoredType::i64, StoredType::i32, StoredType::u32,
        StoredType::u16, StoredType::u8}) {
    if (H5Tequal(type.get(), hdf5::file_type(candidate)) <= 0) continue;
    info_.type = candidate;
    return;
  }
  fail("expected elements of f32, f64, i64, i32, u32, u16 or u8 (little-endian), got others");
}

void Hdf5Dataset::check_extent() {
  const Handle space(H5Dget_space(id_), H5Sclose);
  if (!space.valid()) fail("cannot read its extent: " + hdf5::last_message());
  const int rank = H5Sget_simple_extent_ndims(space.get());
  if (H5Sget_simple_extent_type(space.get()) != H5S_SIMPLE || rank < 1 || rank > kMaxDims)
    fail(fmt::format("expected 1 to {} dims, got {}", kMaxDims, rank));
  hsize_t dims[kMaxDims] = {};
  if (H5Sget_simple_extent_dims(space.get(), dims, nullptr) < 0)
    fail("cannot read its extent: " + hdf5::last_message());
  hsize_t bytes = size_of(info_.type);
  for (int dim = 0; dim < rank; ++dim) {
    if (dims[dim] == 0) fail("it is empty");
    if (__builtin_mul_overflow(bytes, dims[dim], &bytes) || bytes > hsize_t{1} << 62)
      fail("its extent overflows");
    info_.dims.push_back(int64_t(dims[dim]));
  }
}

// Where the bytes are, and that all of them are in the file.
void Hdf5Dataset::check_storage(int64_t file_bytes) {
  const Handle properties(H5Dget_create_plist(id_), H5Pclose);
  if (!properties.valid()) fail("cannot read its layout: " + hdf5::last_message());
  if (H5Pget_external_count(properties.get()) != 0) fail("external storage is refused");
  const H5D_layout_t layout = H5Pget_layout(properties.get());
  if (layout != H5D_COMPACT && layout != H5D_CONTIGUOUS && layout != H5D_CHUNKED)
    fail("a virtual or unknown layout is refused");
  bool deflated = false;
  const int num_filters = H5Pget_nfilters(properties.get());
  for (int filter = 0; filter < num_filters; ++filter) {
    unsigned flags = 0;
    unsigned config = 0;
    size_t num_values = 0;
    const H5Z_filter_t id = H5Pget_filter2(properties.get(), unsigned(filter), &flags, &num_values,
                                           nullptr, 0, nullptr, &config);
    if (id != H5Z_FILTER_DEFLATE && id != H5Z_FILTER_SHUFFLE && id != H5Z_FILTER_FLETCHER32)
      fail(fmt::format("filter {} is refused; deflate, shuffle and fletcher32 are allowed",
                       int(id)));
    deflated = deflated || id == H5Z_FILTER_DEFLATE;
    checksummed_ = checksummed_ || id == H5Z_FILTER_FLETCHER32;
  }
  const int64_t bytes = info_.numel() * int64_t(size_of(info_.type));
  const int64_t stored = int64_t(std::min<hsize_t>(H5Dget_storage_size(id_), INT64_MAX));
  if (stored > file_bytes || bytes / (deflated ? kMaxDeflateRatio : 1) > stored)
    fail(fmt::format("it declares {} bytes, of which {} are stored in a file of {}", bytes, stored,
                     file_bytes));
  if (layout == H5D_CHUNKED) check_chunks(properties.get());
}

// A chunk that is not stored would read as zeros.
void Hdf5Dataset::check_chunks(int64_t properties) {
  hsize_t chunk[kMaxDims] = {};
  if (H5Pget_chunk(properties, kMaxDims, chunk) != int(info_.dims.size()))
    fail("its chunks have other dims than it has");
  chunk_ = int64_t(chunk[0]);
  hsize_t expected = 1;
  for (size_t dim = 0; dim < info_.dims.size(); ++dim)
    expected *= (hsize_t(info_.dims[dim]) + chunk[dim] - 1) / chunk[dim];
  hsize_t stored = 0;
  const Handle space(H5Dget_space(id_), H5Sclose);
  if (H5Dget_num_chunks(id_, space.get(), &stored) < 0)
    fail("cannot read its chunk index: " + hdf5::last_message());
  if (stored != expected) fail(fmt::format("expected {} chunks, got {}", expected, stored));
}

void Hdf5Dataset::expect_type(StoredType type) const {
  SLUICE_CHECK(type == info_.type, path_, ": /", name_, " holds ", name_of(info_.type),
               ", read as ", name_of(type));
}

void Hdf5Dataset::read_range(StoredType type, int64_t begin, int64_t count, void* out) const {
  expect_type(type);
  SLUICE_CHECK(info_.dims.size() == 1 && begin >= 0 && count >= 0 && begin <= info_.dims[0] - count,
               "elements [", begin, ", ", begin + count, ") of /", name_);
  if (count == 0) return;
  hdf5::prepare_thread();
  const hsize_t start = hsize_t(begin);
  const hsize_t length = hsize_t(count);
  const Handle source(H5Dget_space(id_), H5Sclose);
  const Handle target(H5Screate_simple(1, &length, nullptr), H5Sclose);
  if (H5Sselect_hyperslab(source.get(), H5S_SELECT_SET, &start, nullptr, &length, nullptr) < 0 ||
      H5Dread(id_, hdf5::memory_type(type), target.get(), source.get(), H5P_DEFAULT, out) < 0) {
    fail(fmt::format("cannot read elements [{}, {}): {}", begin, begin + count,
                     hdf5::last_message()));
  }
}

void Hdf5Dataset::read_all(StoredType type, void* out) const {
  expect_type(type);
  hdf5::prepare_thread();
  if (H5Dread(id_, hdf5::memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, out) < 0)
    fail("cannot read it: " + hdf5::last_message());
}

}  // namespace sluice
