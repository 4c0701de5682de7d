#include "kernels/chunk_state/chunk_state.h"
