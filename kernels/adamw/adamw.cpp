#include "kernels/adamw/adamw.h"
