// Products in whole numbers: int8_dynamic rounds the vectors to int8, too, each 64 numbers of them with a step of their own,
// x = code * step with step = max |x| / 127. A group of 64 products of codes is added up exactly; then the groups, times
// their steps, one after the other, in fp32. So every way to compute them gives the same bits.
//
// Instructions that multiply bytes (VNNI) take one factor without sign: codes of the matrix are raised by 128, and sums
// start at -128 times the sum of the vector's codes.
//
// A few vectors meet the matrix row by row, as it lies in memory. For more, 32 rows are first laid side by side, four
// inputs of each together, and stay in the cache while all vectors pass.

constexpr int64_t BYTES = 64;       // codes of a group; those of a vector are padded with zeros to whole groups
constexpr int64_t PANEL = 32;       // rows of a matrix laid side by side
constexpr int64_t MANY = 5;         // vectors that are worth it
constexpr float SMALLEST = 1e-30f;  // a group without larger numbers counts as zeros

INLINE int64_t groups_of(int64_t inputs) { return (inputs + BYTES - 1) / BYTES; }
INLINE int64_t bytes_of_panel(int64_t inputs) { return PANEL * BYTES * groups_of(inputs); }

// Vectors rounded to int8: for each of them codes, and for each group of codes a step and where its sums start.
struct Rounded {
    int8_t* codes;
    float* steps;
    int32_t* starts;
    int64_t groups;  // of one vector
};
// Memory for them, in floats.
INLINE int64_t floats_of_rounded(int64_t rows, int64_t inputs) { return rows * groups_of(inputs) * (BYTES / 4 + 2); }
INLINE Rounded rounded_in(float* memory, int64_t rows, int64_t inputs) {
    int64_t groups = groups_of(inputs);
    float* steps = memory + rows * groups * (BYTES / 4);
    return {(int8_t*)memory, steps, (int32_t*)(steps + rows * groups), groups};
}

INLINE void round_row(const float* x, int64_t inputs, const Rounded& to, int64_t m) {
    constexpr int PARTS = BYTES / LANES;
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    V nothing = {};
    for (int64_t g = 0; g < to.groups; g++) {
        V part[PARTS], most = {};
#pragma GCC unroll 16
        for (int i = 0; i < PARTS; i++) {
            int64_t at = g * BYTES + i * LANES;
            part[i] = at < inputs ? load_upto(x + at, inputs - at) : V{};
            most = larger(most, of_bits(bits_of(part[i]) & 0x7fffffff));
            nothing += part[i] * 0.0f;  // not a number, if there is one that is none or infinite
        }
        float top = largest(most);
        top = top > SMALLEST ? top : SMALLEST;
        float inverse = 127.0f / top;
        VI total = {};
#pragma GCC unroll 16
        for (int i = 0; i < PARTS; i++) {
            // 1.5 x 2^23 added and taken off again rounds to a whole number, to nearest even.
            VI code = bits_of(held(part[i] * inverse) + 12582912.0f) - 0x4b400000;
            total += code;
            Bytes narrowed = __builtin_convertvector(code, Bytes);
            memcpy(to.codes + (m * to.groups + g) * BYTES + i * LANES, &narrowed, LANES);
        }
        to.steps[m * to.groups + g] = top / 127.0f;
#ifdef BYTE_PRODUCTS
        to.starts[m * to.groups + g] = -128 * sum(total);
#endif
    }
    to.steps[m * to.groups] += sum(nothing);
}

// Sums in whole numbers of group g: sums[m * R + r] is that of row r and vector m, spread over lanes.
template <int M>
INLINE void group_dots(const int8_t* const* w, const int8_t* const* x, const int32_t* const* starts, int64_t g,
                       int64_t inputs, VI* sums) {
    constexpr int R = LANES / M;
    int64_t at = g * BYTES, left = inputs - at;
#ifdef BYTE_PRODUCTS
    const __m512i raise = _mm512_set1_epi8((char)0x80);
    __mmask64 there = left >= BYTES ? ~0ull : (1ull << left) - 1;
    __m512i vectors[M], begin[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
        vectors[m] = _mm512_loadu_si512(x[m] + at);
        begin[m] = _mm512_zextsi128_si512(_mm_cvtsi32_si128(starts[m][g]));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        __m512i codes = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, w[r] + at), raise);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) sums[m * R + r] = (VI)_mm512_dpbusd_epi32(begin[m], codes, vectors[m]);
    }
#else
    (void)starts;
    for (int i = 0; i < LANES; i++) sums[i] = VI{};
    int64_t count = left < BYTES ? left : BYTES, whole = count - count % LANES;
    for (int64_t i = at; i < at + whole; i += LANES)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            VI codes = ints(w[r] + i);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) sums[m * R + r] += codes * ints(x[m] + i);
        }
    for (int64_t i = at + whole; i < at + count; i++)
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) sums[m * R + r][0] += w[r][i] * x[m][i];
#endif
}

// Products of LANES / M rows, from `row` on, and M vectors, the first `used` of which are real: lane m * R + r.
template <int M> INLINE V dots_of_codes(const Matrix& a, int64_t row, const Rounded& v, int64_t first, int used) {
    constexpr int R = LANES / M;
    const int8_t *w[R], *x[M];
    const int32_t* starts[M];
    const float* steps[M];
    for (int r = 0; r < R; r++)
        w[r] = (const int8_t*)a.packed + (row + r < a.outputs ? row + r : a.outputs - 1) * a.inputs;
    for (int m = 0; m < M; m++) {
        int64_t at = (first + (m < used ? m : used - 1)) * v.groups;
        x[m] = v.codes + at * BYTES, starts[m] = v.starts + at, steps[m] = v.steps + at;
    }
    const char* ahead = (const char*)(w[0] + R * a.inputs);  // the next rows, fetched while these are computed
    V total = {};
    for (int64_t g = 0; g < v.groups; g++) {
        for (int line = 0; line < R; line++) __builtin_prefetch(ahead + line * BYTES);
        ahead += R * BYTES;
        VI whole[LANES];
        group_dots<M>(w, x, starts, g, a.inputs, whole);
        V step = all(steps[0][g]);
#pragma GCC unroll 16
        for (int m = 1; m < M; m++) {
            VI mine;
            for (int l = 0; l < LANES; l++) mine[l] = l / R == m ? -1 : 0;
            step = select(mine, all(steps[m][g]), step);
        }
        total += held(__builtin_convertvector(sums(whole), V) * step);
    }
    return total;
}

#ifdef BYTE_PRODUCTS
// Rows [row, row + PANEL) raised and laid side by side: for every four inputs PANEL times four codes.
static void lay_panel(const Matrix& a, int64_t row, uint8_t* panel) {
    const __m512i raise = _mm512_set1_epi8((char)0x80);
    for (int half = 0; half < 2; half++)
        for (int64_t i = 0; i < a.inputs; i += BYTES) {
            int64_t left = a.inputs - i;
            __mmask64 there = left >= BYTES ? ~0ull : (1ull << left) - 1;
            VI square[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) {
                int64_t at = row + half * LANES + r < a.outputs ? row + half * LANES + r : a.outputs - 1;
                const int8_t* codes = (const int8_t*)a.packed + at * a.inputs + i;
                __builtin_prefetch(codes + PANEL * a.inputs);
                square[r] = (VI)_mm512_xor_si512(_mm512_maskz_loadu_epi8(there, codes), raise);
            }
            mirror(square);
#pragma GCC unroll 16
            for (int q = 0; q < LANES; q++) memcpy(panel + (i / 4 + q) * 4 * PANEL + half * BYTES, square + q, BYTES);
        }
}

// M vectors from the m-th on times a panel: `write(vector, half, products of 16 rows)`.
template <int M, class Write>
INLINE void panel_times(const uint8_t* panel, const Rounded& x, int64_t first, Write write) {
    V total[M][2] = {};
    for (int64_t g = 0; g < x.groups; g++) {
        VI whole[M][2];
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) whole[m][0] = whole[m][1] = all_ints(x.starts[(first + m) * x.groups + g]);
        const int8_t* codes = x.codes + (first * x.groups + g) * BYTES;
#pragma GCC unroll 2
        for (int q = 0; q < BYTES / 4; q++) {
            const uint8_t* at = panel + (g * BYTES / 4 + q) * 4 * PANEL;
            __m512i left = _mm512_loadu_si512(at), right = _mm512_loadu_si512(at + BYTES);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) {
                __m512i four = _mm512_set1_epi32(raw<int32_t>(codes + m * x.groups * BYTES + 4 * q));
                whole[m][0] = (VI)_mm512_dpbusd_epi32((__m512i)whole[m][0], left, four);
                whole[m][1] = (VI)_mm512_dpbusd_epi32((__m512i)whole[m][1], right, four);
            }
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; m++)
            for (int half = 0; half < 2; half++)
                total[m][half] +=
                    held(__builtin_convertvector(whole[m][half], V) * x.steps[(first + m) * x.groups + g]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) write(first + m, half, total[m][half]);
}
#endif
