// The functions that Python calls, and the choice of a level.
//
// There is no Python in here: the library is opened with ctypes, so it does not depend on Python's version.
#include "program.h"

#if defined(__x86_64__)
namespace vnni { extern const Level functions; }
namespace avx512 { extern const Level functions; }
namespace avx2 { extern const Level functions; }
#endif
namespace plain { extern const Level functions; }

#define EXPORTED extern "C" __attribute__((visibility("default")))

static const Level* level_at(int64_t index) {
    const Level* levels[4];
    int64_t count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool two = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    bool five = two && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (five && __builtin_cpu_supports("avx512vnni")) levels[count++] = &vnni::functions;
    if (five) levels[count++] = &avx512::functions;
    if (two) levels[count++] = &avx2::functions;
#endif
    levels[count++] = &plain::functions;
    return index >= 0 && index < count ? levels[index] : nullptr;
}

// The name of the level, best first; null after the last.
EXPORTED const char* trivium_level(int64_t index) {
    const Level* level = level_at(index);
    return level ? level->name : nullptr;
}
// Bytes of each structure, so that Python can check its own.
EXPORTED int64_t trivium_size(int64_t which) {
    const int64_t sizes[] = {sizeof(Matrix), sizeof(Norm), sizeof(Layer), sizeof(Program), sizeof(KeysValues),
                             sizeof(Sequence), sizeof(Step)};
    return which >= 0 && which < 7 ? sizes[which] : 0;
}
EXPORTED void trivium_linear(int64_t level, const Matrix* matrix, const float* x, int64_t x_stride, int64_t rows,
                             float* out, int64_t threads) {
    level_at(level)->linear(*matrix, x, x_stride, rows, out, (int)threads);
}
EXPORTED int64_t trivium_scratch(int64_t level, const Step* step, int64_t threads) {
    return level_at(level)->scratch(*step, (int)threads);
}
EXPORTED void trivium_step(int64_t level, const Step* step, float* scratch, int64_t threads) {
    level_at(level)->step(*step, scratch, (int)threads);
}
