// NEON, as every ARMv8.0 has it: 32 registers of 4 lanes.
#define SPARCL_NAME "neon"
#define SPARCL_UNIT kernels_neon
#define SPARCL_LANES 4
#define SPARCL_NEON 1
#define SPARCL_SHAPES_1 {{2, 8}, {4, 4}, {1, 16}, {2, 4}, {1, 8}, {2, 2}, {1, 4}, {1, 2}, {1, 1}, {0, 0}}
#define SPARCL_SHAPES_2 {{2, 4}, {1, 8}, {2, 2}, {1, 4}, {1, 2}, {1, 1}, {0, 0}}
#define SPARCL_SHAPES_4 {{1, 4}, {2, 2}, {1, 2}, {1, 1}, {0, 0}}
#define SPARCL_TOGETHER 4
#define SPARCL_HELD 4
#define SPARCL_NEXT_FORWARD 1
#define SPARCL_NEXT_BACKWARD 1
#include "kernels/unit-inl.h"
