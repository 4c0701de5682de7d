#include "kernels/attention/attention.h"
