#include "kernels/gated_rms_norm/gated_rms_norm.h"
