#include "kernels/activation/activation.h"
