#include "kernels/embedding/embedding.h"
