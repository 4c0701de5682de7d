#include "kernels/state_passing/state_passing.h"
