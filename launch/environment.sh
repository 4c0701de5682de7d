# Sourced by the scripts: what Open MPI needs on one host, where ranks may outnumber cores and the
# user may be root. See launch/README.md.
export OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_rmaps_base_oversubscribe=1
export OMP_WAIT_POLICY=passive
# Open MPI gives each of two ranks one core: where there are more, they would lie idle.
[ "$(nproc)" -le 2 ] || export OMPI_MCA_hwloc_base_binding_policy=none
if [ "$(id -u)" -eq 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1
  export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# The options of CMake by which the scripts build for GPUs: where there is one and nvcc, or where
# SLUICE_CUDA is 1 (0: never).
cuda_options=(-DSLUICE_WITH_CUDA=OFF)
export PATH=$PATH:/usr/local/cuda/bin
if [ "${SLUICE_CUDA:-}" = 1 ] ||
  { [ -z "${SLUICE_CUDA:-}" ] && [ -e /dev/nvidia0 ] && command -v nvcc >/dev/null; }; then
  cuda_options=(-DSLUICE_WITH_CUDA=ON)
fi
