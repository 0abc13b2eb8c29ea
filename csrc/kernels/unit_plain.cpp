// Whatever the compiler makes of vectors of 4 lanes without being told more.
#define SPARCL_NAME "plain"
#define SPARCL_UNIT kernels_plain
#define SPARCL_LANES 4
#define SPARCL_SHAPES_1 {{2, 4}, {1, 8}, {2, 2}, {1, 4}, {1, 2}, {1, 1}, {0, 0}}
#define SPARCL_SHAPES_2 {{2, 2}, {1, 4}, {1, 2}, {1, 1}, {0, 0}}
#define SPARCL_SHAPES_4 {{1, 2}, {1, 1}, {0, 0}}
#define SPARCL_TOGETHER 2
#define SPARCL_HELD 2
#include "kernels/unit-inl.h"
