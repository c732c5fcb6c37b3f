// Processors with AVX-512 and its products of bytes (VNNI): as `avx512.cpp`, and int8_dynamic in whole numbers.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#define LANES 16
#define MOST 8
#define BYTE_PRODUCTS
#define LEVEL vnni
#include "level.h"
#endif
