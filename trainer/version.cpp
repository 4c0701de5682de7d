#include "trainer/version.h"

#include <hdf5.h>
#include <mpi.h>

#include <array>

#include "git_commit.h"
#include "kernels/attention/attention_cudnn.h"
#include "kernels/core/device_memory.h"
#include "kernels/core/dispatch.h"
#include "parallel/nccl_communicator.h"

namespace sluice {
namespace {

// "Open MPI v4.1.4, package: ..." or "MPICH Version:\t4.0.2\n...": the name and number alone.
std::string mpi_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> buffer{};
  int length = 0;
  if (MPI_Get_library_version(buffer.data(), &length) != MPI_SUCCESS) return "unknown";
  std::string text(buffer.data(), size_t(length));
  text.resize(std::min(text.find_first_of(",\n"), text.size()));
  for (const std::string mark : {" Version:\t", " Version: ", " v"}) {
    const size_t at = text.find(mark);
    if (at != std::string::npos) text.replace(at, mark.size(), " ");
  }
  return text;
}

std::string cudnn_support() {
  if constexpr (kBuiltWithCuda) return cuda::cudnn_support();
  return "none";
}

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  if (H5get_libversion(&major, &minor, &release) < 0) return "unknown";
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
}

}  // namespace

std::string version() { return kVersion; }
std::string git_commit() { return kGitCommit; }

std::vector<std::pair<std::string, std::string>> built_in() {
  return {{"CUDA", cuda_version()},   {"NCCL", nccl_version()}, {"MPI", mpi_version()},
          {"cuDNN", cudnn_support()}, {"oneDNN", "none"},       {"HDF5", hdf5_version()}};
}

std::string version_text() {
  std::string text = "sluice " + version() + " (commit " + git_commit() + ")\n";
  for (const auto& [name, value] : built_in()) text += name + " " + value + "\n";
  return text;
}

}  // namespace sluice
