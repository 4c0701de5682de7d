#include "kernels/ssd_step/ssd_step.h"
