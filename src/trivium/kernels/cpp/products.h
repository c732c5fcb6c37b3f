// Products of a matrix and vectors: every weight is read once, widened once, and met by all vectors.
//
// A tile is LANES sums: R rows of the matrix times M vectors, R x M = LANES, each sum spread over the lanes of one
// vector and gathered at the end. The order of additions within a sum depends neither on M nor on the thread, so a
// vector's product is the same, bit for bit, alone and in any company.

// Adds to sums[m * R + r] the product of row r and vector m, for matrices stored element by element.
template <class T, int M> INLINE void add_dots(const Matrix& a, int64_t row, const float* const* x, V* sums) {
    constexpr int R = LANES / M;
    const T* w[R];
    for (int r = 0; r < R; r++) {
        int64_t at = row + r < a.outputs ? row + r : a.outputs - 1;  // a row too many is computed and not stored
        w[r] = (const T*)a.packed + at * a.inputs;
    }
    const char* ahead = (const char*)(w[0] + R * a.inputs);  // the next tile, fetched while this one is computed
    int64_t whole = a.inputs - a.inputs % LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        constexpr int BYTES = R * LANES * (int)sizeof(T);
        for (int line = 0; line < BYTES; line += 64) __builtin_prefetch(ahead + line);
        ahead += BYTES;
        V vectors[M];
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) vectors[m] = held(load(x[m] + i));
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            V weights = load(w[r] + i);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) sums[m * R + r] += weights * vectors[m];
        }
    }
    if (int64_t left = a.inputs - whole)
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++)
                sums[m * R + r] += load_part(w[r] + whole, left) * load_part(x[m] + whole, left);
}

// 16 bytes of int4, widened: the low halves, then the high ones. A code c stands for c * scale + base.
INLINE void widen_int4(const uint8_t* bytes, float scale, float base, V* weights) {
#if LANES == 16
    // All 16 possible weights of the group are made, and each code looks up its own.
    V table = V{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * scale + base;
    VI codes = ints(bytes);
    weights[0] = __builtin_shuffle(table, codes);
    weights[1] = __builtin_shuffle(table, codes >> 4);
#else
    constexpr int PARTS = 16 / LANES;
    for (int part = 0; part < PARTS; part++) {
        VI codes = ints(bytes + part * LANES);
        weights[part] = __builtin_convertvector(codes & 15, V) * scale + base;
        weights[PARTS + part] = __builtin_convertvector(codes >> 4, V) * scale + base;
    }
#endif
}

// Scales and bases of up to GROUPS groups of R rows, in fp32.
constexpr int GROUPS = 32;
template <int R> struct Scales {
    float scale[R][GROUPS], base[R][GROUPS];

    template <bool ASYMMETRIC>
    inline __attribute__((always_inline)) void widen(const Matrix& a, const int64_t* rows, int64_t first,
                                                     int64_t count) {
        int64_t groups = a.inputs / a.group, end = a.outputs * groups;
        for (int r = 0; r < R; r++)
            for (int64_t g = 0; g < count; g += LANES) {
                // Reading on into the next row harms nobody, reading on behind the last one would.
                int64_t from = rows[r] * groups + first + g, left = end - from;
                V s = load_upto((const fp16*)a.scales + from, left);
                store(scale[r] + g, s);
                store(base[r] + g, ASYMMETRIC ? load_upto((const fp16*)a.offsets + from, left) : s * -8.0f);
            }
    }
};

// The same for int4 in groups with fp16 scales.
template <bool ASYMMETRIC, int M>
INLINE void add_int4_dots(const Matrix& a, int64_t row, const float* const* x, V* sums) {
    constexpr int R = LANES / M, PARTS = 32 / LANES;
    int64_t rows[R], groups = a.inputs / a.group;
    for (int r = 0; r < R; r++) rows[r] = row + r < a.outputs ? row + r : a.outputs - 1;
    const uint8_t *bytes[R], *ahead = (const uint8_t*)a.packed + (row + R) * (a.inputs / 2);
    for (int r = 0; r < R; r++) bytes[r] = (const uint8_t*)a.packed + rows[r] * (a.inputs / 2);
    Scales<R> scales;
    int shift = __builtin_ctzll((unsigned long long)a.group);  // groups are of 32, 64 or 128
    for (int64_t first = 0; first < groups; first += GROUPS) {
        int64_t count = groups - first < GROUPS ? groups - first : GROUPS;
        scales.template widen<ASYMMETRIC>(a, rows, first, count);
        for (int64_t i = first * a.group, end = i + count * a.group; i < end; i += 32) {
            int64_t g = (i >> shift) - first;
            for (int line = 0; line < R * 16; line += 64) __builtin_prefetch(ahead + line);
            ahead += R * 16;
            if constexpr (M <= 4) {  // the vectors stay in registers
                V vectors[M][PARTS], weights[PARTS];
#pragma GCC unroll 16
                for (int m = 0; m < M; m++)
#pragma GCC unroll 16
                    for (int v = 0; v < PARTS; v++) vectors[m][v] = load(x[m] + i + v * LANES);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) {
                    widen_int4(bytes[r] + i / 2, scales.scale[r][g], scales.base[r][g], weights);
#pragma GCC unroll 16
                    for (int v = 0; v < PARTS; v++)
#pragma GCC unroll 16
                        for (int m = 0; m < M; m++) sums[m * R + r] += weights[v] * vectors[m][v];
                }
            } else {  // the weights do
                V weights[R][PARTS], vectors[M];
#pragma GCC unroll 16
                for (int r = 0; r < R; r++)
                    widen_int4(bytes[r] + i / 2, scales.scale[r][g], scales.base[r][g], weights[r]);
#pragma GCC unroll 16
                for (int v = 0; v < PARTS; v++) {
#pragma GCC unroll 16
                    for (int m = 0; m < M; m++) vectors[m] = held(load(x[m] + i + v * LANES));
#pragma GCC unroll 16
                    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
                        for (int m = 0; m < M; m++) sums[m * R + r] += weights[r][v] * vectors[m];
                }
            }
        }
    }
}

template <int64_t KIND, int M> INLINE void add_kind(const Matrix& a, int64_t row, const float* const* x, V* sums) {
    if constexpr (KIND == FP32) add_dots<float, M>(a, row, x, sums);
    else if constexpr (KIND == BF16) add_dots<bf16, M>(a, row, x, sums);
    else if constexpr (KIND == FP16) add_dots<fp16, M>(a, row, x, sums);
    else if constexpr (KIND == INT8) add_dots<int8_t, M>(a, row, x, sums);
    else add_int4_dots<KIND == INT4_ASYMMETRIC, M>(a, row, x, sums);
}

// Where products go: out[m * stride + o] = or += the product of row o and vector m.
struct Target {
    float* out;
    int64_t stride;
    bool add;
};

// Vectors, one after the other; for int8_dynamic also rounded, with a panel's memory (`whole_numbers.h`).
struct Vectors {
    const float* x;
    int64_t stride, count;
    Rounded rounded;
    uint8_t* panel;
};

// Rows [begin, end) times vectors `first` to `first` + `used`, of M that are computed.
template <int64_t KIND, int M>
static void rows_times(const Matrix& a, const Vectors& v, int64_t first, int used, int64_t begin, int64_t end,
                       Target to) {
    constexpr int R = LANES / M;
    const float* x[M];
    for (int m = 0; m < M; m++) x[m] = v.x + (first + (m < used ? m : used - 1)) * v.stride;
    for (int64_t row = begin; row < end; row += R) {
        float tile[LANES];
        if constexpr (KIND == INT8_DYNAMIC) {
            store(tile, dots_of_codes<M>(a, row, v.rounded, first, used));
        } else {
            V partial[LANES] = {};
            add_kind<KIND, M>(a, row, x, partial);
            store(tile, sums(partial));
        }
        if (KIND == INT8 || KIND == INT8_DYNAMIC)
            for (int r = 0; r < R && row + r < end; r++)
                for (int m = 0; m < M; m++) tile[m * R + r] *= ((const float*)a.scales)[row + r];
        // The scaled product is rounded before the bias is added, in every instance of this template alike.
        asm volatile("" : "+m"(tile));
        for (int r = 0; r < R && row + r < end; r++) {
            float bias = a.bias ? a.bias[row + r] : 0.0f;
            for (int m = 0; m < used; m++) {
                float* out = to.out + m * to.stride + row + r;
                float y = tile[m * R + r] + bias;
                *out = to.add ? *out + y : y;
            }
        }
    }
}

#ifdef BYTE_PRODUCTS
// The same of int8_dynamic for many vectors.
static void panels_times(const Matrix& a, const Vectors& x, int64_t begin, int64_t end, Target to) {
    for (int64_t row = begin; row < end; row += PANEL) {
        lay_panel(a, row, x.panel);
        auto write = [&](int64_t m, int half, V product) {
            int64_t at = row + half * LANES, left = end - at;
            if (left <= 0) return;
            V y = held(product * load_upto((const float*)a.scales + at, left));
            if (a.bias) y += load_upto(a.bias + at, left);
            float* out = to.out + m * to.stride + at;
            store_upto(out, to.add ? load_upto(out, left) + y : y, left);
        };
        int64_t m = 0;
        for (; m + 6 <= x.count; m += 6) panel_times<6>(x.panel, x.rounded, m, write);
        for (; m + 2 <= x.count; m += 2) panel_times<2>(x.panel, x.rounded, m, write);
        if (m < x.count) panel_times<1>(x.panel, x.rounded, m, write);
    }
}
#endif

// Rows [begin, end) of the matrix times all vectors: tile by tile through all of them, so that a tile is read from
// memory once and then from the cache.
template <int64_t KIND>
static void kind_times(const Matrix& a, const Vectors& v, int64_t begin, int64_t end, Target to) {
#ifdef BYTE_PRODUCTS
    if (KIND == INT8_DYNAMIC && v.count >= MANY) return panels_times(a, v, begin, end, to);
#endif
    for (int64_t tile = begin; tile < end; tile += LANES) {
        int64_t stop = tile + LANES < end ? tile + LANES : end;
        for (int64_t m = 0; m < v.count; m += MOST) {
            int used = (int)(v.count - m < MOST ? v.count - m : MOST);
            Target here = {to.out + m * to.stride, to.stride, to.add};
            if (used == 1) rows_times<KIND, 1>(a, v, m, used, tile, stop, here);
            else if (used == 2) rows_times<KIND, 2>(a, v, m, used, tile, stop, here);
#if LANES >= 8
            else if (used <= 4) rows_times<KIND, 4>(a, v, m, used, tile, stop, here);
#endif
#if LANES >= 16
            else rows_times<KIND, 8>(a, v, m, used, tile, stop, here);
#endif
        }
    }
}

static void times(const Matrix& a, const Vectors& x, int64_t begin, int64_t end, Target to) {
    switch (a.kind) {
    case FP32: return kind_times<FP32>(a, x, begin, end, to);
    case BF16: return kind_times<BF16>(a, x, begin, end, to);
    case FP16: return kind_times<FP16>(a, x, begin, end, to);
    case INT8: return kind_times<INT8>(a, x, begin, end, to);
    case INT4: return kind_times<INT4>(a, x, begin, end, to);
    case INT4_ASYMMETRIC: return kind_times<INT4_ASYMMETRIC>(a, x, begin, end, to);
    default: return kind_times<INT8_DYNAMIC>(a, x, begin, end, to);
    }
}

// The rows of a matrix that one of `threads` computes: [begin, end), in whole tiles.
struct Share {
    int64_t begin, end;
};
static Share share_of(int64_t outputs, int thread, int threads) {
    int64_t tiles = (outputs + 15) / 16;
    int64_t begin = tiles * thread / threads * 16, end = tiles * (thread + 1) / threads * 16;
    return {begin < outputs ? begin : outputs, end < outputs ? end : outputs};
}

static void linear(const Matrix& a, const float* x, int64_t x_stride, int64_t rows, float* out, int threads) {
    bool rounds = a.kind == INT8_DYNAMIC;
    int64_t panel = bytes_of_panel(a.inputs);
    // A panel begins on a cache line.
    std::vector<uint8_t> panels(rounds && rows >= MANY ? threads * panel + BYTES : 0);
    uint8_t* first_panel = panels.data() + -(uintptr_t)panels.data() % BYTES;
    std::vector<float> memory(rounds ? floats_of_rounded(rows, a.inputs) : 0);
    Rounded rounded = rounded_in(memory.data(), rows, a.inputs);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int thread = omp_get_thread_num();
        if (rounds) {
#pragma omp for
            for (int64_t m = 0; m < rows; m++) round_row(x + m * x_stride, a.inputs, rounded, m);
        }
        Share mine = share_of(a.outputs, thread, omp_get_num_threads());
        Vectors vectors = {x, x_stride, rows, rounded, first_panel + thread * panel};
        times(a, vectors, mine.begin, mine.end, {out, a.outputs, false});
    }
}
