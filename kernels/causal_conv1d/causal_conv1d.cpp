#include "kernels/causal_conv1d/causal_conv1d.h"
