#include "kernels/selective_scan/selective_scan.h"
