#include "kernels/chunk_cumsum/chunk_cumsum.h"
