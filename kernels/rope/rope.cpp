#include "kernels/rope/rope.h"
