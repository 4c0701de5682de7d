#include "kernels/elementwise/elementwise.h"
