// AVX2 with FMA: 16 registers of 8 lanes.
#define SPARCL_NAME "avx2"
#define SPARCL_UNIT kernels_avx2
#define SPARCL_LANES 8
#define SPARCL_SHAPES_1 {{2, 4}, {1, 8}, {2, 2}, {1, 4}, {1, 2}, {1, 1}, {0, 0}}
#define SPARCL_SHAPES_2 {{2, 2}, {1, 4}, {1, 2}, {1, 1}, {0, 0}}
#define SPARCL_SHAPES_4 {{1, 2}, {1, 1}, {0, 0}}
#define SPARCL_TOGETHER 2
#define SPARCL_HELD 3
#include "kernels/unit-inl.h"
