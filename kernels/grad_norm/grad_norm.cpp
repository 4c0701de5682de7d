#include "kernels/grad_norm/grad_norm.h"
