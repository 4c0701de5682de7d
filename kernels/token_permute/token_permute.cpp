#include "kernels/token_permute/token_permute.h"
