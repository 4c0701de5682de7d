#include "kernels/linear_xent/linear_xent.h"
