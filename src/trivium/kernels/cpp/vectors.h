// Vectors of LANES floats, written once for every level of instructions (GCC's vector extensions).
//
// Included inside the namespace of a level, after LANES is defined and the instructions are chosen.

typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t VI __attribute__((vector_size(4 * LANES)));
typedef uint16_t VU16 __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))

struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

template <class T> INLINE T raw(const void* from) {
    T v;
    memcpy(&v, from, sizeof v);
    return v;
}
INLINE V all(float x) { return x - V{}; }
INLINE VI all_ints(int32_t x) { return x - VI{}; }
// The number of each lane.
INLINE VI lanes() {
    alignas(64) static constexpr int32_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return raw<VI>(numbers);
}
INLINE V load(const float* p) { return raw<V>(p); }
INLINE void store(float* p, V v) { memcpy(p, &v, sizeof v); }
INLINE VI bits_of(V v) { return (VI)v; }
INLINE V of_bits(VI v) { return (V)v; }
INLINE V select(VI mask, V a, V b) { return of_bits((mask & bits_of(a)) | (~mask & bits_of(b))); }
INLINE V larger(V a, V b) { return a > b ? a : b; }
INLINE V smaller(V a, V b) { return a < b ? a : b; }

// The same, in a register: GCC would rather load it again for every use. Nor does it join what is computed before with
// what is computed after (a product and a sum, which would then be rounded once).
INLINE V held(V v) {
#if LANES > 4
    asm("" : "+v"(v));
#elif defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

// Bytes to whole numbers; named by hand where GCC would take them apart one by one.
#if LANES == 16
INLINE VI ints(const int8_t* p) { return (VI)_mm512_cvtepi8_epi32(raw<__m128i>(p)); }
INLINE VI ints(const uint8_t* p) { return (VI)_mm512_cvtepu8_epi32(raw<__m128i>(p)); }
INLINE VI ints(const bf16* p) { return (VI)_mm512_cvtepu16_epi32(raw<__m256i>(p)); }
#elif LANES == 8
INLINE VI ints(const int8_t* p) { return (VI)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
INLINE VI ints(const uint8_t* p) { return (VI)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
INLINE VI ints(const bf16* p) { return (VI)_mm256_cvtepu16_epi32(raw<__m128i>(p)); }
#else
INLINE VI ints(const int8_t* p) { return VI{p[0], p[1], p[2], p[3]}; }
INLINE VI ints(const uint8_t* p) { return VI{p[0], p[1], p[2], p[3]}; }
INLINE VI ints(const bf16* p) { return __builtin_convertvector(raw<VU16>(p), VI); }
#endif

// Each stored type, widened.
INLINE V load(const int8_t* p) { return __builtin_convertvector(ints(p), V); }
INLINE V load(const bf16* p) { return of_bits(ints(p) << 16); }
#if LANES == 16
INLINE V load(const fp16* p) { return (V)_mm512_cvtph_ps(raw<__m256i>(p)); }
#elif LANES == 8
INLINE V load(const fp16* p) { return (V)_mm256_cvtph_ps(raw<__m128i>(p)); }
#else
// Finite numbers only: the exponent is moved by a product with 2^112, which also makes denormals right.
INLINE V load(const fp16* p) {
    VI bits = __builtin_convertvector(raw<VU16>(p), VI);
    V magnitude = of_bits((bits & 0x7fff) << 13) * 0x1p112f;
    return of_bits(bits_of(magnitude) | ((bits & 0x8000) << 16));
}
#endif
// The first `count` of a vector, zeros behind.
template <class T> INLINE V load_part(const T* p, int64_t count) {
    T padded[LANES] = {};
    memcpy(padded, p, (size_t)count * sizeof(T));
    return load(padded);
}
template <class T> INLINE V load_upto(const T* p, int64_t count) {
    return count >= LANES ? load(p) : load_part(p, count);
}
INLINE V first_of(V v, int64_t count) {
    for (int64_t l = count; l < LANES; l++) v[l] = 0;
    return v;
}
INLINE void store_upto(float* p, V v, int64_t count) {
    if (count >= LANES) store(p, v);
    else memcpy(p, &v, (size_t)count * 4);
}

// Narrowed, to nearest even, for what is written to the slots.
INLINE void narrow(float x, float* to) { *to = x; }
INLINE void narrow(float x, bf16* to) {
    uint32_t bits = raw<uint32_t>(&x);
    to->bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE void narrow(float x, fp16* to) {
    uint32_t bits = raw<uint32_t>(&x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x47800000) to->bits = (uint16_t)(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
    else if (magnitude < 0x38800000) {  // a denormal: let the addition of 1/2 round it
        float shifted = raw<float>(&magnitude) + 0.5f;
        to->bits = (uint16_t)(sign | (raw<uint32_t>(&shifted) - 0x3f000000));
    } else to->bits = (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}

// LANES vectors to one: lane i of the result is the sum of vector i. Halves are added, then halves of these, so the
// order in which a vector's lanes are added does not depend on its place.
template <int BLOCK, class X> INLINE X added_blocks(X a, X b) {
    VI even, odd;
    for (int i = 0; i < LANES; i++) {
        even[i] = i / BLOCK * 2 * BLOCK + i % BLOCK;
        odd[i] = even[i] + BLOCK;
    }
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
}
template <int BLOCK, class X> INLINE void added_pairs(X* v) {
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; i++) v[i] = added_blocks<BLOCK>(v[2 * i], v[2 * i + 1]);
}
template <class X> INLINE X sums(X* v) {
#if LANES >= 16
    added_pairs<8>(v);
#endif
#if LANES >= 8
    added_pairs<4>(v);
#endif
    added_pairs<2>(v);
    added_pairs<1>(v);
    return v[0];
}

// The lanes of one vector joined: its halves, then the halves of these.
template <class X, class Join> INLINE auto joined(X v, Join join) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
        v = join(v, __builtin_shuffle(v, (lanes() + half) & (LANES - 1)));
    }
    return v[0];
}
template <class X> INLINE auto sum(X v) {
    return joined(v, [](X a, X b) { return a + b; });
}
INLINE float largest(V v) {
    return joined(v, [](V a, V b) { return larger(a, b); });
}

#if LANES == 16
// A square of 16 x 16 numbers, mirrored: blocks of 8, of 4, of 2 and of 1 change places.
template <int BLOCK> INLINE void exchange(VI* v) {
    VI upper, lower;
    for (int l = 0; l < LANES; l++) {
        upper[l] = l & BLOCK ? LANES + l - BLOCK : l;
        lower[l] = l & BLOCK ? LANES + l : l + BLOCK;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & BLOCK)) {
            VI a = v[i], b = v[i + BLOCK];
            v[i] = __builtin_shuffle(a, b, upper);
            v[i + BLOCK] = __builtin_shuffle(a, b, lower);
        }
}
INLINE void mirror(VI* v) {
    exchange<8>(v);
    exchange<4>(v);
    exchange<2>(v);
    exchange<1>(v);
}
#endif

// e^x within 2 ulp; 0 below -87, which also stands for minus infinity.
INLINE V exponential(V x) {
    VI under = x < all(-87.0f);
    x = x > all(88.0f) ? all(88.0f) : select(under, all(0.0f), x);  // what is no number stays none
    V shifted = x * 1.44269504f + 12582912.0f;  // 1.5 x 2^23: the whole part appears in the low bits
    V whole = shifted - 12582912.0f;
    V rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    V y = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    y = y * of_bits((__builtin_convertvector(whole, VI) + 127) << 23);
    return select(under, all(0.0f), y);
}
INLINE V hyperbolic_tangent(V x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }
// Abramowitz and Stegun 7.1.26, at most 1.5e-7 off.
INLINE V error_function(V x) {
    V a = of_bits(bits_of(x) & 0x7fffffff);
    V t = 1.0f / (a * 0.3275911f + 1.0f);
    V y = t * 1.061405429f - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    y = 1.0f - y * t * exponential(-(a * a));
    return of_bits(bits_of(y) | (bits_of(x) & (int32_t)0x80000000));
}
INLINE V activated(V x, int64_t activation) {
    switch (activation) {
    case SILU: return x / (exponential(-x) + 1.0f);
    case GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    case GELU_TANH: return x / (exponential((x * x * 0.044715f + 1.0f) * x * -1.5957691216f) + 1.0f);
    default: return x < all(0.0f) ? all(0.0f) : x;  // what is no number stays none
    }
}
