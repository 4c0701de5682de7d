#include "kernels/topk_router/topk_router.h"
