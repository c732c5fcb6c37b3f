// One level of vector instructions: everything, compiled for LANES floats at a time.
//
// LANES floats are a vector; MOST is the largest number of vectors a matrix meets at a time; with BYTE_PRODUCTS there are
// instructions that multiply and add bytes.
#if !defined(__GNUC__) || defined(__clang__)
#error "the kernels are written for GCC; without them, Trivium computes through torch"
#endif
#if LANES > 4
#include <immintrin.h>
#endif
#include <omp.h>

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "program.h"

namespace LEVEL {
#include "vectors.h"
#include "whole_numbers.h"
#include "products.h"
#include "attention.h"
#include "step.h"
#define NAME_(level) #level
#define NAME(level) NAME_(level)
extern const Level functions;
const Level functions = {NAME(LEVEL), linear, step, scratch};
}  // namespace LEVEL
