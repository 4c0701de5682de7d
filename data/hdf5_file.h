// Safe use of the serial HDF5 C API, for token stores, checkpoints and dumps. Three facts shaped
// it: HDF5 1.10 crashes on a full disk, checks nothing unless told to, and lets a file read other
// files. So files are built in memory and written by atomic_write_file(); every dataset is chunked
// and carries Fletcher-32 checksums, and metadata the checksums of the latest format; and a reader
// refuses external storage, virtual datasets, links that are not hard, and unknown filters, and
// compares declared sizes with the file's before a caller can allocate by them.
//
// Any thread may use any object, one thread at a time an object.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/core/dtype.h"

namespace sluice {

// Element types of datasets, little-endian in the file. (bf16 is stored as the f32 it came from.)
enum class StoredType : uint8_t { f32, f64, i64, i32, u32, u16, u8 };

const char* name_of(StoredType type);
size_t size_of(StoredType type);
StoredType stored_type(DType dtype);  // throws Error(bug) for bf16

template <class T>
struct StoredTypeOf {
  static constexpr StoredType value = StoredType(0xff);
};
template <>
struct StoredTypeOf<float> {
  static constexpr StoredType value = StoredType::f32;
};
template <>
struct StoredTypeOf<double> {
  static constexpr StoredType value = StoredType::f64;
};
template <>
struct StoredTypeOf<int64_t> {
  static constexpr StoredType value = StoredType::i64;
};
template <>
struct StoredTypeOf<int32_t> {
  static constexpr StoredType value = StoredType::i32;
};
template <>
struct StoredTypeOf<uint32_t> {
  static constexpr StoredType value = StoredType::u32;
};
template <>
struct StoredTypeOf<uint16_t> {
  static constexpr StoredType value = StoredType::u16;
};
template <>
struct StoredTypeOf<uint8_t> {
  static constexpr StoredType value = StoredType::u8;
};
template <class T>
inline constexpr StoredType stored_type_of = StoredTypeOf<T>::value;

struct DatasetInfo {
  StoredType type = StoredType::u8;
  std::vector<int64_t> dims;  // 1 to 5 of them
  int64_t numel() const;
};

// The bytes of a finished file, for atomic_write_file() and hashes.
class Hdf5Image {
 public:
  using Memory = std::unique_ptr<char[], void (*)(void*)>;
  Hdf5Image(Memory memory, size_t size) : memory_(std::move(memory)), size_(size) {}
  std::string_view bytes() const { return {memory_.get(), size_}; }
  operator std::string_view() const { return bytes(); }

 private:
  Memory memory_;
  size_t size_;
};

// Builds a file in memory. Dataset names may hold '/' (groups are made on the way), no leading one.
class Hdf5Writer {
 public:
  Hdf5Writer();
  ~Hdf5Writer();
  Hdf5Writer(Hdf5Writer&&) noexcept;
  Hdf5Writer& operator=(Hdf5Writer&&) noexcept;

  // Attributes of the root. A name is set once.
  void set_attribute(const std::string& name, int64_t value);
  void set_attribute(const std::string& name, const std::string& value);

  // A whole dataset, row-major, of numel(dims) elements.
  template <class T>
  void write(const std::string& name, const std::vector<int64_t>& dims, const T* data) {
    write(name, {stored_type_of<T>, dims}, data);
  }
  void write(const std::string& name, const DatasetInfo& info, const void* data);

  // A dataset of one dim that grows; `chunk` elements share a checksum.
  template <class T>
  void create_growing(const std::string& name, int64_t chunk) {
    create_growing(name, stored_type_of<T>, chunk);
  }
  void create_growing(const std::string& name, StoredType type, int64_t chunk);
  template <class T>
  void append(const std::string& name, std::span<const T> values) {
    append(name, stored_type_of<T>, values.data(), int64_t(values.size()));
  }
  void append(const std::string& name, StoredType type, const void* data, int64_t count);

  // The finished file; nothing can be added afterwards. It is in memory once, so cap its size.
  Hdf5Image finish();
  // finish() and atomic_write_file(); returns the number of bytes.
  int64_t finish_to(const std::string& path);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// An open dataset whose layout, links, filters and extent have been checked.
class Hdf5Dataset {
 public:
  Hdf5Dataset(Hdf5Dataset&& other) noexcept;
  Hdf5Dataset& operator=(Hdf5Dataset&& other) noexcept;
  ~Hdf5Dataset();

  const DatasetInfo& info() const { return info_; }
  int64_t chunk() const { return chunk_; }  // elements of dim 0 in a chunk; 0 if it has none
  bool checksummed() const { return checksummed_; }

  // Elements [begin, begin + count) of a dataset of one dim, which must hold T exactly.
  template <class T>
  void read_range(int64_t begin, int64_t count, T* out) const {
    read_range(stored_type_of<T>, begin, count, out);
  }
  // All elements; the dataset must hold T exactly.
  template <class T>
  void read(T* out) const {
    read_all(stored_type_of<T>, out);
  }
  template <class T>
  std::vector<T> read() const {
    std::vector<T> values(info_.numel());
    read(values.data());
    return values;
  }

 private:
  friend class Hdf5Reader;
  Hdf5Dataset(std::string path, std::string name, int64_t id);
  void check(int64_t file_bytes);
  void check_type();
  void check_extent();
  void check_storage(int64_t file_bytes);
  void check_chunks(int64_t properties);
  void read_range(StoredType type, int64_t begin, int64_t count, void* out) const;
  void read_all(StoredType type, void* out) const;
  void expect_type(StoredType type) const;
  [[noreturn]] void fail(const std::string& what) const;

  std::string path_;
  std::string name_;
  int64_t id_ = -1;
  DatasetInfo info_;
  int64_t chunk_ = 0;
  bool checksummed_ = false;
};

// A file opened for reading. Construction throws IoError if it cannot be opened, DataError if it is
// no HDF5 file, is truncated, or holds a link that is not hard.
class Hdf5Reader {
 public:
  explicit Hdf5Reader(const std::string& path);
  ~Hdf5Reader();
  Hdf5Reader(Hdf5Reader&&) noexcept;
  Hdf5Reader& operator=(Hdf5Reader&&) noexcept;

  const std::string& path() const { return path_; }
  // Full names, sorted: "exp_avg/embedding.weight".
  const std::vector<std::string>& datasets() const { return names_; }
  bool has(const std::string& name) const;

  // Throws DataError if there is none of the name, or if it is hostile.
  Hdf5Dataset dataset(const std::string& name) const;
  // The same, and DataError unless type and dims are these: before anything is allocated.
  Hdf5Dataset dataset(const std::string& name, StoredType type,
                      const std::vector<int64_t>& dims) const;
  template <class T>
  void read(const std::string& name, const std::vector<int64_t>& dims, T* out) const {
    dataset(name, stored_type_of<T>, dims).read(out);
  }

  bool has_attribute(const std::string& name) const;
  int64_t int_attribute(const std::string& name) const;         // DataError if absent or other
  std::string string_attribute(const std::string& name) const;  // the same; at most 1 MiB

 private:
  std::string path_;
  int64_t id_ = -1;
  int64_t file_bytes_ = 0;
  std::vector<std::string> names_;
};

}  // namespace sluice
