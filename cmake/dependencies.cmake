# Everything comes from the distribution's packages; nothing is downloaded. launch/install_packages
# lists them.
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(MPI REQUIRED COMPONENTS C)
find_package(HDF5 REQUIRED COMPONENTS C)
find_package(Threads REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(ZLIB REQUIRED)

# The OpenMP flavour of OpenBLAS, by path: the distribution's alternatives may prefer the pthread one,
# whose pool would fight with ours.
find_library(OPENBLAS_LIBRARY openblas PATH_SUFFIXES openblas-openmp NO_CACHE)
find_path(OPENBLAS_INCLUDE_DIR cblas.h
  PATH_SUFFIXES ${CMAKE_LIBRARY_ARCHITECTURE}/openblas-openmp openblas-openmp openblas NO_CACHE)
if(NOT OPENBLAS_LIBRARY OR NOT OPENBLAS_INCLUDE_DIR)
  message(FATAL_ERROR "OpenBLAS (OpenMP flavour) not found: install libopenblas-openmp-dev")
endif()
get_filename_component(OPENBLAS_DIR ${OPENBLAS_LIBRARY} DIRECTORY)
add_library(sluice_openblas INTERFACE)
target_include_directories(sluice_openblas SYSTEM INTERFACE ${OPENBLAS_INCLUDE_DIR})
target_link_libraries(sluice_openblas INTERFACE ${OPENBLAS_LIBRARY})
target_link_options(sluice_openblas INTERFACE -Wl,-rpath,${OPENBLAS_DIR})

find_library(XXHASH_LIBRARY xxhash REQUIRED NO_CACHE)
find_path(XXHASH_INCLUDE_DIR xxhash.h REQUIRED NO_CACHE)
add_library(sluice_xxhash INTERFACE)
target_include_directories(sluice_xxhash SYSTEM INTERFACE ${XXHASH_INCLUDE_DIR})
target_link_libraries(sluice_xxhash INTERFACE ${XXHASH_LIBRARY})

find_library(ZSTD_LIBRARY zstd REQUIRED NO_CACHE)
find_path(ZSTD_INCLUDE_DIR zstd.h REQUIRED NO_CACHE)
add_library(sluice_zstd INTERFACE)
target_include_directories(sluice_zstd SYSTEM INTERFACE ${ZSTD_INCLUDE_DIR})
target_link_libraries(sluice_zstd INTERFACE ${ZSTD_LIBRARY})

add_library(sluice_hdf5 INTERFACE)
target_include_directories(sluice_hdf5 SYSTEM INTERFACE ${HDF5_C_INCLUDE_DIRS})
target_link_libraries(sluice_hdf5 INTERFACE ${HDF5_C_LIBRARIES})

# The runtime libraries of GPUs. nvcc is not needed for them.
if(SLUICE_WITH_CUDA)
  find_package(CUDAToolkit REQUIRED)
  # cuDNN's library is loaded at run time, if at all: a build needs its headers alone.
  find_path(CUDNN_INCLUDE_DIR cudnn_graph.h HINTS ${CUDAToolkit_INCLUDE_DIRS} NO_CACHE)
  if(NOT CUDNN_INCLUDE_DIR)
    message(STATUS "cuDNN's headers not found: attention runs on our own kernels alone")
  endif()
  find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} NO_CACHE)
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} NO_CACHE)
  if(NCCL_LIBRARY AND NCCL_INCLUDE_DIR)
    add_library(sluice_nccl INTERFACE)
    target_include_directories(sluice_nccl SYSTEM INTERFACE ${NCCL_INCLUDE_DIR})
    target_link_libraries(sluice_nccl INTERFACE ${NCCL_LIBRARY} CUDA::cudart)
  else()
    message(STATUS "NCCL not found: ranks cannot share GPU memory; install libnccl-dev")
  endif()
endif()
