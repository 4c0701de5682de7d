#include "data/hdf5_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "data/hdf5_handle.h"
#include "kernels/core/error.h"

namespace sluice {

using hdf5::Handle;

namespace {

constexpr int kMaxGroupDepth = 8;
constexpr size_t kMaxNames = 100'000;
constexpr size_t kMaxAttributeBytes = 1 << 20;

struct Link {
  std::string name;
  bool hard = false;
};

// Called from C: collects, never throws, stops at the limit.
herr_t collect_link(hid_t, const char* name, const H5L_info_t* info, void* out) {
  auto& links = *static_cast<std::vector<Link>*>(out);
  if (links.size() >= kMaxNames) return 1;
  links.push_back({name, info->type == H5L_TYPE_HARD});
  return 0;
}

// Collects the names of all datasets below a group.
class LinkWalk {
 public:
  LinkWalk(const std::string& path, std::vector<std::string>& names) : path_(path), names_(names) {}

  void group(hid_t id, const std::string& prefix, int depth) {
    if (depth > kMaxGroupDepth) fail(prefix, "groups are nested too deep (or form a cycle)");
    std::vector<Link> links;
    hsize_t position = 0;
    if (H5Literate(id, H5_INDEX_NAME, H5_ITER_INC, &position, collect_link, &links) < 0)
      fail(prefix, "cannot list the group: " + hdf5::last_message());
    for (const Link& link : links) {
      visited_ += 1;
      if (visited_ > kMaxNames) fail(prefix, "too many objects");
      if (!link.hard) fail(prefix + link.name, "soft and external links are refused");
      visit(id, link.name, prefix, depth);
    }
  }

 private:
  void visit(hid_t parent, const std::string& name, const std::string& prefix, int depth) {
    const Handle object(H5Oopen(parent, name.c_str(), H5P_DEFAULT), H5Oclose);
    if (!object.valid()) fail(prefix + name, "cannot open it: " + hdf5::last_message());
    const H5I_type_t type = H5Iget_type(object.get());
    if (type == H5I_GROUP) return group(object.get(), prefix + name + "/", depth + 1);
    if (type != H5I_DATASET) fail(prefix + name, "expected a dataset or a group");
    names_.push_back(prefix + name);
  }
  [[noreturn]] void fail(const std::string& name, const std::string& what) const {
    throw DataError(fmt::format("{}: /{}: {}", path_, name, what));
  }

  const std::string& path_;
  std::vector<std::string>& names_;
  size_t visited_ = 0;
};

int64_t regular_file_bytes(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw IoError(fmt::format("{}: cannot open: {}", path, std::strerror(errno)));
  struct stat status {};
  const int result = ::fstat(fd, &status);
  ::close(fd);
  if (result != 0 || !S_ISREG(status.st_mode))
    throw IoError(fmt::format("{}: not a regular file", path));
  return status.st_size;
}

}  // namespace

Hdf5Reader::Hdf5Reader(const std::string& path)
    : path_(path), file_bytes_(regular_file_bytes(path)) {
  hdf5::require_thread_safety();
  hdf5::prepare_thread();
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  // Finished files never change, and file systems without locks must work.
  H5Pset_file_locking(access.get(), false, true);
  Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  if (!file.valid()) {
    throw DataError(
        fmt::format("{}: not an HDF5 file, or a damaged or truncated one ({} bytes): {}", path,
                    file_bytes_, hdf5::last_message()));
  }
  LinkWalk(path_, names_).group(file.get(), "", 0);
  std::sort(names_.begin(), names_.end());
  id_ = file.release();
}

Hdf5Reader::~Hdf5Reader() {
  if (id_ < 0) return;
  hdf5::prepare_thread();
  H5Fclose(id_);
}

Hdf5Reader::Hdf5Reader(Hdf5Reader&& other) noexcept
    : path_(std::move(other.path_)),
      id_(std::exchange(other.id_, -1)),
      file_bytes_(other.file_bytes_),
      names_(std::move(other.names_)) {}

Hdf5Reader& Hdf5Reader::operator=(Hdf5Reader&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(id_, other.id_);
  std::swap(file_bytes_, other.file_bytes_);
  std::swap(names_, other.names_);
  return *this;
}

bool Hdf5Reader::has(const std::string& name) const {
  return std::binary_search(names_.begin(), names_.end(), name);
}

Hdf5Dataset Hdf5Reader::dataset(const std::string& name) const {
  hdf5::prepare_thread();
  if (!has(name)) throw DataError(fmt::format("{}: there is no dataset /{}", path_, name));
  const hid_t id = H5Dopen2(id_, name.c_str(), H5P_DEFAULT);
  if (id < 0)
    throw DataError(
        fmt::format("{}: dataset /{}: cannot open it: {}", path_, name, hdf5::last_message()));
  Hdf5Dataset dataset(path_, name, id);
  dataset.check(file_bytes_);
  return dataset;
}

Hdf5Dataset Hdf5Reader::dataset(const std::string& name, StoredType type,
                                const std::vector<int64_t>& dims) const {
  Hdf5Dataset found = dataset(name);
  const auto describe = [](StoredType stored, const std::vector<int64_t>& extent) {
    std::string text = fmt::format("{} (", name_of(stored));
    for (const int64_t dim : extent)
      text += fmt::format("{}{}", text.back() == '(' ? "" : ", ", dim);
    return text + ")";
  };
  if (found.info().type != type || found.info().dims != dims) {
    found.fail(fmt::format("expected {}, got {}", describe(type, dims),
                           describe(found.info().type, found.info().dims)));
  }
  return found;
}

bool Hdf5Reader::has_attribute(const std::string& name) const {
  hdf5::prepare_thread();
  return H5Aexists(id_, name.c_str()) > 0;
}

int64_t Hdf5Reader::int_attribute(const std::string& name) const {
  hdf5::prepare_thread();
  const Handle attribute(H5Aopen(id_, name.c_str(), H5P_DEFAULT), H5Aclose);
  const Handle type(attribute.valid() ? H5Aget_type(attribute.get()) : -1, H5Tclose);
  const Handle space(attribute.valid() ? H5Aget_space(attribute.get()) : -1, H5Sclose);
  int64_t value = 0;
  if (!type.valid() || !space.valid() || H5Tequal(type.get(), H5T_STD_I64LE) <= 0 ||
      H5Sget_simple_extent_npoints(space.get()) != 1 ||
      H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) < 0) {
    throw DataError(fmt::format("{}: expected an attribute {} of one i64", path_, name));
  }
  return value;
}

std::string Hdf5Reader::string_attribute(const std::string& name) const {
  hdf5::prepare_thread();
  const Handle attribute(H5Aopen(id_, name.c_str(), H5P_DEFAULT), H5Aclose);
  const Handle type(attribute.valid() ? H5Aget_type(attribute.get()) : -1, H5Tclose);
  const Handle space(attribute.valid() ? H5Aget_space(attribute.get()) : -1, H5Sclose);
  const bool fits = type.valid() && space.valid() && H5Tget_class(type.get()) == H5T_STRING &&
                    H5Tis_variable_str(type.get()) == 0 &&
                    H5Tget_size(type.get()) <= kMaxAttributeBytes &&
                    H5Sget_simple_extent_npoints(space.get()) == 1;
  std::string value(fits ? H5Tget_size(type.get()) : 0, '\0');
  if (!fits || H5Aread(attribute.get(), type.get(), value.data()) < 0)
    throw DataError(
        fmt::format("{}: expected an attribute {} of one string of at most {} bytes, fixed length",
                    path_, name, kMaxAttributeBytes));
  value.resize(std::min(value.size(), std::strlen(value.c_str())));
  return value;
}

}  // namespace sluice
