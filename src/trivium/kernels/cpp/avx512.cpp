// Processors with AVX-512: vectors of 16 floats.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define LANES 16
#define MOST 8
#define LEVEL avx512
#include "level.h"
#endif
