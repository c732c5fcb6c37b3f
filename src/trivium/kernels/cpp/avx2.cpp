// Processors with AVX2 and FMA: vectors of 8 floats.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define LANES 8
#define MOST 4
#define LEVEL avx2
#include "level.h"
#endif
