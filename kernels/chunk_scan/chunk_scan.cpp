#include "kernels/chunk_scan/chunk_scan.h"
