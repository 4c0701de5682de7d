#include "kernels/gemm/gemm.h"
