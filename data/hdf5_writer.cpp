#include <cstdlib>
#include <cstring>
#include <map>

#include "data/files.h"
#include "data/hdf5_file.h"
#include "data/hdf5_handle.h"

namespace sluice {

using hdf5::Handle;

namespace {

// One checksum covers a chunk: small enough to stay in a cache, large enough to cost no index.
constexpr int64_t kChunkBytes = 256 << 10;
// The image of the file grows in these steps.
constexpr size_t kImageIncrement = 1 << 20;
// Where the superblock of version 3 keeps the file's size (8 bytes, little-endian).
constexpr size_t kSuperblockVersionAt = 8;
constexpr size_t kEndOfFileAt = 28;

// A handle whose creation must have succeeded.
Handle made(hid_t id, Handle::Close close) {
  HDF5_CHECK(id < 0 ? -1 : 0);
  return Handle(id, close);
}

// Halves the longest of the leading dims until a chunk is small enough.
std::vector<hsize_t> chunk_dims(const DatasetInfo& info) {
  std::vector<hsize_t> chunk(info.dims.begin(), info.dims.end());
  auto bytes = [&] {
    size_t product = size_of(info.type);
    for (const hsize_t dim : chunk) product *= dim;
    return int64_t(product);
  };
  for (hsize_t& dim : chunk) {
    while (dim > 1 && bytes() > kChunkBytes) dim = (dim + 1) / 2;
  }
  return chunk;
}

// Properties of a new object without the time of its creation: equal content gives equal bytes.
Handle timeless(hid_t object_class) {
  Handle properties = made(H5Pcreate(object_class), H5Pclose);
  HDF5_CHECK(H5Pset_obj_track_times(properties.get(), false));
  return properties;
}

// Checksummed chunks, with zeros in the unused part of one at the edge: nothing of the process's
// memory gets into files.
Handle dataset_properties(const std::vector<hsize_t>& chunk) {
  Handle properties = timeless(H5P_DATASET_CREATE);
  HDF5_CHECK(H5Pset_chunk(properties.get(), int(chunk.size()), chunk.data()));
  HDF5_CHECK(H5Pset_fletcher32(properties.get()));
  HDF5_CHECK(H5Pset_fill_time(properties.get(), H5D_FILL_TIME_ALLOC));
  return properties;
}

// The core driver's memory is ours: closing the file, which alone gives it a valid superblock,
// leaves the image behind instead of freeing it. (H5Fget_file_image of an open file in 1.10 spoils
// the superblock's checksum, and would be a second copy.)
struct Image {
  void* data = nullptr;
  size_t allocated = 0;
};

void* resize(void* data, size_t size, void* image) {
  void* moved = std::realloc(data, size);
  if (moved != nullptr) *static_cast<Image*>(image) = {moved, size};
  return moved;
}

H5FD_file_image_callbacks_t keep_in(Image& image) {
  H5FD_file_image_callbacks_t callbacks{};
  callbacks.image_malloc = [](size_t size, H5FD_file_image_op_t, void* kept) {
    return resize(nullptr, size, kept);
  };
  callbacks.image_memcpy = [](void* to, const void* from, size_t size, H5FD_file_image_op_t,
                              void*) { return std::memcpy(to, from, size); };
  callbacks.image_realloc = [](void* data, size_t size, H5FD_file_image_op_t, void* kept) {
    return resize(data, size, kept);
  };
  callbacks.image_free = [](void*, H5FD_file_image_op_t, void*) { return herr_t{0}; };
  callbacks.udata_copy = [](void* kept) { return kept; };
  callbacks.udata_free = [](void*) { return herr_t{0}; };
  callbacks.udata = &image;
  return callbacks;
}

}  // namespace

struct Hdf5Writer::State {
  ~State() {
    hdf5::prepare_thread();
    growing.clear();
    file.reset();
    std::free(image.data);
  }

  Image image;  // outlives the file
  Handle file;
  std::map<std::string, Handle> growing;

  Handle create(const std::string& name, StoredType type, const Handle& space,
                const std::vector<hsize_t>& chunk) {
    SLUICE_CHECK(!name.empty() && name.front() != '/', "dataset name \"", name, "\"");
    make_groups(name);
    const Handle properties = dataset_properties(chunk);
    return made(H5Dcreate2(file.get(), name.c_str(), hdf5::file_type(type), space.get(),
                           H5P_DEFAULT, properties.get(), H5P_DEFAULT),
                H5Dclose);
  }

  // Those on the way to the dataset.
  void make_groups(const std::string& name) {
    for (size_t slash = name.find('/'); slash != std::string::npos;
         slash = name.find('/', slash + 1)) {
      const std::string group = name.substr(0, slash);
      if (H5Lexists(file.get(), group.c_str(), H5P_DEFAULT) > 0) continue;
      made(H5Gcreate2(file.get(), group.c_str(), H5P_DEFAULT, timeless(H5P_GROUP_CREATE).get(),
                      H5P_DEFAULT),
           H5Gclose);
    }
  }
};

Hdf5Writer::Hdf5Writer() : state_(std::make_unique<State>()) {
  hdf5::require_thread_safety();
  hdf5::prepare_thread();
  const Handle access = made(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  HDF5_CHECK(H5Pset_fapl_core(access.get(), kImageIncrement, false));
  // The format of 1.10 checksums its metadata, and every later version reads it.
  HDF5_CHECK(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110));
  H5FD_file_image_callbacks_t callbacks = keep_in(state_->image);
  HDF5_CHECK(H5Pset_file_image_callbacks(access.get(), &callbacks));
  // There is no backing store, so nothing is opened under the name; it only has to be unique.
  const std::string name = concat("memory-", static_cast<const void*>(state_.get()));
  state_->file =
      made(H5Fcreate(name.c_str(), H5F_ACC_TRUNC, timeless(H5P_FILE_CREATE).get(), access.get()),
           H5Fclose);
}

Hdf5Writer::~Hdf5Writer() = default;
Hdf5Writer::Hdf5Writer(Hdf5Writer&&) noexcept = default;
Hdf5Writer& Hdf5Writer::operator=(Hdf5Writer&&) noexcept = default;

void Hdf5Writer::set_attribute(const std::string& name, int64_t value) {
  hdf5::prepare_thread();
  const Handle space = made(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute = made(H5Acreate2(state_->file.get(), name.c_str(), H5T_STD_I64LE,
                                           space.get(), H5P_DEFAULT, H5P_DEFAULT),
                                H5Aclose);
  HDF5_CHECK(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &value));
}

void Hdf5Writer::set_attribute(const std::string& name, const std::string& value) {
  hdf5::prepare_thread();
  SLUICE_CHECK(value.find('\0') == std::string::npos, "attribute ", name, " holds a NUL");
  const Handle type = made(H5Tcopy(H5T_C_S1), H5Tclose);
  HDF5_CHECK(H5Tset_size(type.get(), value.size() + 1));
  HDF5_CHECK(H5Tset_cset(type.get(), H5T_CSET_UTF8));
  const Handle space = made(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute = made(H5Acreate2(state_->file.get(), name.c_str(), type.get(),
                                           space.get(), H5P_DEFAULT, H5P_DEFAULT),
                                H5Aclose);
  HDF5_CHECK(H5Awrite(attribute.get(), type.get(), value.c_str()));
}

void Hdf5Writer::write(const std::string& name, const DatasetInfo& info, const void* data) {
  hdf5::prepare_thread();
  SLUICE_CHECK(!info.dims.empty() && info.dims.size() <= 5 && info.numel() > 0, "dataset ", name,
               " needs 1 to 5 dims and elements");
  const std::vector<hsize_t> dims(info.dims.begin(), info.dims.end());
  const Handle space = made(H5Screate_simple(int(dims.size()), dims.data(), nullptr), H5Sclose);
  const Handle dataset = state_->create(name, info.type, space, chunk_dims(info));
  HDF5_CHECK(
      H5Dwrite(dataset.get(), hdf5::memory_type(info.type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data));
}

void Hdf5Writer::create_growing(const std::string& name, StoredType type, int64_t chunk) {
  hdf5::prepare_thread();
  const hsize_t extent = 0;
  const hsize_t limit = H5S_UNLIMITED;
  const Handle space = made(H5Screate_simple(1, &extent, &limit), H5Sclose);
  state_->growing[name] = state_->create(name, type, space, {hsize_t(chunk)});
}

void Hdf5Writer::append(const std::string& name, StoredType type, const void* data, int64_t count) {
  hdf5::prepare_thread();
  const auto found = state_->growing.find(name);
  SLUICE_CHECK(found != state_->growing.end(), "no growing dataset ", name);
  const hid_t dataset = found->second.get();
  hsize_t begin = 0;
  {
    const Handle space = made(H5Dget_space(dataset), H5Sclose);
    HDF5_CHECK(H5Sget_simple_extent_dims(space.get(), &begin, nullptr));
  }
  const hsize_t added = hsize_t(count);
  const hsize_t end = begin + added;
  HDF5_CHECK(H5Dset_extent(dataset, &end));
  const Handle target = made(H5Dget_space(dataset), H5Sclose);
  HDF5_CHECK(H5Sselect_hyperslab(target.get(), H5S_SELECT_SET, &begin, nullptr, &added, nullptr));
  const Handle source = made(H5Screate_simple(1, &added, nullptr), H5Sclose);
  HDF5_CHECK(
      H5Dwrite(dataset, hdf5::memory_type(type), source.get(), target.get(), H5P_DEFAULT, data));
}

Hdf5Image Hdf5Writer::finish() {
  hdf5::prepare_thread();
  SLUICE_CHECK(state_->file.valid(), "the file is finished already");
  state_->growing.clear();
  HDF5_CHECK(H5Fclose(state_->file.release()));
  const Image image = std::exchange(state_->image, Image{});
  Hdf5Image::Memory memory(static_cast<char*>(image.data), std::free);
  uint64_t size = 0;
  SLUICE_CHECK(image.allocated > kEndOfFileAt + sizeof(size) && memory[kSuperblockVersionAt] == 3,
               "an image of ", image.allocated, " bytes");
  std::memcpy(&size, memory.get() + kEndOfFileAt, sizeof(size));
  SLUICE_CHECK(size <= image.allocated, size, " bytes in an image of ", image.allocated);
  return Hdf5Image(std::move(memory), size);
}

int64_t Hdf5Writer::finish_to(const std::string& path) {
  const Hdf5Image image = finish();
  atomic_write_file(path, image);
  return int64_t(image.bytes().size());
}

}  // namespace sluice
