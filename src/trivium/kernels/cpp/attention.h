// Attention of the newest rows of a slot over all its positions, in pieces.
//
// The positions of a slot are cut into chunks at fixed places. A unit is one chunk of one slot under one key/value head
// and all queries that share it: it rotates its queries, stores the new keys and values that fall into its chunk, and
// leaves for each query the largest score, the sum of exponentials and the weighted values (Dao et al. 2022,
// arXiv:2205.14135, 3.1). Whoever finishes the last chunk of a head adds them up. Neither threads nor neighbours change
// the order of any sum.

//
// Where a slot gets many rows at once, keys are laid across first, so that queries meet them without adding up lanes: a
// matrix product. Its sums have the order that the lanes would have, so nothing depends on how many rows there are.

constexpr int64_t CHUNK = 128;
constexpr int64_t QUERIES = 24;     // worked on at a time, so that their scores stay in the cache
constexpr int64_t MANY_ROWS = 33;  // of one slot

// What the threads of a step share about attention in one layer.
struct Attending {
    const Program& program;
    const Layer& layer;
    const KeysValues& slots;
    int64_t layer_index;
    float* projected;  // (rows, (H + 2 K) N): queries, keys, values; keys are normed and rotated in place
    int64_t projected_stride;
    float* attended;  // (rows, H N)
    int64_t attended_stride;
    float* partial;  // one for every unit and query: N values, the largest score, the sum
};

// Chunks [first, last] that the rows of a sequence can see.
struct Chunks {
    int64_t first, last;
};
INLINE Chunks chunks_seen(const Sequence& s, int64_t window) {
    int64_t oldest = window && s.start - window + 1 > 0 ? s.start - window + 1 : 0;
    return {oldest / CHUNK, (s.start + s.count - 1) / CHUNK};
}

INLINE void norm_row(const Norm& norm, const float* x, float* y, int64_t width) {
    if (norm.kind == NO_NORM) {
        if (x != y) memcpy(y, x, (size_t)width * 4);
        return;
    }
    V squares = {}, total = {};
    float mean = 0;
    if (norm.kind == LAYER_NORM) {
        for (int64_t i = 0; i < width; i += LANES) total += load_upto(x + i, width - i);
        mean = sum(total) / (float)width;
    }
    for (int64_t i = 0; i < width; i += LANES) {
        V v = first_of(load_upto(x + i, width - i) - mean, width - i);
        squares += v * v;
    }
    float inverse = 1.0f / std::sqrt(sum(squares) / (float)width + (float)norm.eps);
    for (int64_t i = 0; i < width; i += LANES) {
        int64_t left = width - i;
        V v = (load_upto(x + i, left) - mean) * inverse * load_upto(norm.weight + i, left);
        if (norm.bias) v += load_upto(norm.bias + i, left);
        store_upto(y + i, v, left);
    }
}

// Elements i and i + rotated / 2 of a head, turned by the angle of the position.
INLINE void rotate(const Attending& a, float* x, int64_t position) {
    if (!a.layer.cosines) return;
    int64_t half = a.program.rotated / 2;
    const float *cosines = a.layer.cosines + position * half, *sines = a.layer.sines + position * half;
    for (int64_t i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cosines[i] - second * sines[i];
        x[i + half] = second * cosines[i] + first * sines[i];
    }
}

template <class T> INLINE void keep(const float* x, T* to, float*, int64_t width) {
    for (int64_t i = 0; i < width; i++) narrow(x[i], to + i);
}
INLINE void keep(const float* x, int8_t* to, float* scale, int64_t width) {
    float most = 0, nothing = 0;
    for (int64_t i = 0; i < width; i++) {
        most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
        nothing += x[i] * 0.0f;  // not a number, if there is one that is none or infinite
    }
    *scale = most / 127.0f + nothing;
    float divisor = *scale == 0 ? 1.0f : *scale;
    for (int64_t i = 0; i < width; i++) {
        float code = nothing == 0 ? std::nearbyint(x[i] / divisor) : 0.0f;
        to[i] = (int8_t)(code > 127 ? 127 : code < -127 ? -127 : code);
    }
}

// The buffers of one key/value head of one slot.
template <class T> struct HeadBuffers {
    T *keys, *values;
    float *key_scales, *value_scales;  // int8 only
};
template <class T> INLINE HeadBuffers<T> head_buffers(const Attending& a, int64_t slot, int64_t head) {
    int64_t row = (slot * a.program.kv_heads + head) * a.slots.capacity, start = row * a.program.head_width;
    bool scaled = sizeof(T) == 1;
    return {(T*)a.slots.keys[a.layer_index] + start, (T*)a.slots.values[a.layer_index] + start,
            scaled ? a.slots.key_scales[a.layer_index] + row : nullptr,
            scaled ? a.slots.value_scales[a.layer_index] + row : nullptr};
}

// Store the new keys and values of one head that fall into [begin, end).
template <class T>
INLINE void keep_new(const Attending& a, const HeadBuffers<T>& to, const Sequence& s, int64_t head, int64_t begin,
                     int64_t end) {
    const Program& p = a.program;
    int64_t N = p.head_width;
    for (int64_t position = begin > s.start ? begin : s.start; position < end; position++) {
        float* row = a.projected + (s.row + position - s.start) * a.projected_stride;
        float *k = row + (p.heads + head) * N, *v = row + (p.heads + p.kv_heads + head) * N;
        norm_row(a.layer.key_norm, k, k, N);
        rotate(a, k, position);
        keep(k, to.keys + position * N, to.key_scales + position, N);
        keep(v, to.values + position * N, to.value_scales + position, N);
    }
}

// scores[j] of one query over `count` keys, LANES at a time; those of keys that do not exist are 0. The query is padded
// with zeros.
template <class T> INLINE void score(const float* query, const T* keys, int64_t count, int64_t N, float* scores) {
    int64_t whole = N % LANES ? 0 : count / LANES * LANES;
    for (int64_t j = 0; j < whole; j += LANES) {
        V partial[LANES] = {};
        const T* key = keys + j * N;
        for (int64_t i = 0; i < N; i += LANES) {
            V q = load(query + i);
#pragma GCC unroll 16
            for (int l = 0; l < LANES; l++) partial[l] += q * load(key + l * N + i);
        }
        store(scores + j, sums(partial));
    }
    for (int64_t j = whole; j < count; j += LANES) {
        V partial[LANES] = {};
        for (int64_t l = 0; l < LANES && j + l < count; l++)
            for (int64_t i = 0; i < N; i += LANES)
                partial[l] += load(query + i) * load_upto(keys + (j + l) * N + i, N - i);
        store(scores + j, sums(partial));
    }
}

#if LANES == 16
// Keys as rows of CHUNK floats, one for each of their elements; there are some for keys that do not exist, too.
template <class T> INLINE void lay_across(const T* keys, int64_t count, int64_t N, float* across) {
    for (int64_t j = 0; j < count; j += LANES)
        for (int64_t i = 0; i < N; i += LANES) {
            VI square[LANES];
            for (int l = 0; l < LANES; l++) {
                int64_t key = j + l < count ? j + l : count - 1;
                square[l] = bits_of(load_upto(keys + key * N + i, N - i));
            }
            mirror(square);
            for (int l = 0; l < LANES; l++) store(across + (i + l) * CHUNK + j, of_bits(square[l]));
        }
}

// What lanes FIRST, FIRST + STEP, FIRST + 2 STEP ... of Q queries and 2 * LANES keys add up to, in the order of `sums`: each
// lane for itself, then those 8 apart, 4 apart, 2 and 1.
template <int Q, int FIRST, int STEP>
INLINE void add_lanes(const float* queries, int64_t stride, const float* across, V (*total)[2]) {
    if constexpr (STEP == LANES) {
        for (int64_t i = FIRST; i < stride; i += LANES) {
            V left = load(across + i * CHUNK), right = load(across + i * CHUNK + LANES);
#pragma GCC unroll 2
            for (int q = 0; q < Q; q++) {
                V element = all(queries[q * stride + i]);
                total[q][0] += element * left;
                total[q][1] += element * right;
            }
        }
    } else {
        V other[Q][2] = {};
        add_lanes<Q, FIRST, 2 * STEP>(queries, stride, across, total);
        add_lanes<Q, FIRST + STEP, 2 * STEP>(queries, stride, across, other);
#pragma GCC unroll 2
        for (int q = 0; q < Q; q++) total[q][0] += other[q][0], total[q][1] += other[q][1];
    }
}

// scores[q * CHUNK + j] of Q queries over the first `count` of keys laid across.
template <int Q>
INLINE void scores_across(const float* queries, int64_t stride, const float* across, int64_t count, float* scores) {
    for (int64_t j = 0; j < count; j += 2 * LANES) {
        V total[Q][2] = {};
        add_lanes<Q, 0, 1>(queries, stride, across + j, total);
        for (int q = 0; q < Q; q++)
            for (int half = 0; half < 2; half++) store(scores + q * CHUNK + j + half * LANES, total[q][half]);
    }
}
#endif

// Q weighted sums of `count` values: out[q] = sum over j of weights[q][j] values[j].
template <int Q, class T>
INLINE void weigh(const float* weights, const T* values, int64_t count, int64_t N, float* out, int64_t stride) {
    for (int64_t i = 0; i < N; i += 4 * LANES) {
        int64_t left = N - i;
        V total[Q][4] = {};
        if (left >= 4 * LANES) {
            for (int64_t j = 0; j < count; j++)
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++) {
                    V value = load(values + j * N + i + v * LANES);
#pragma GCC unroll 8
                    for (int q = 0; q < Q; q++) total[q][v] += weights[q * CHUNK + j] * value;
                }
        } else
            for (int64_t j = 0; j < count; j++)
                for (int v = 0; v * LANES < left; v++) {
                    V value = load_upto(values + j * N + i + v * LANES, left - v * LANES);
                    for (int q = 0; q < Q; q++) total[q][v] += weights[q * CHUNK + j] * value;
                }
        for (int q = 0; q < Q; q++)
            for (int v = 0; v * LANES < left && v < 4; v++)
                store_upto(out + q * stride + i + v * LANES, total[q][v], left - v * LANES);
    }
}

// Scores of one query at `position`, from dot products to exponentials; returns the largest and the sum.
struct Softmax {
    float largest, sum;
};
template <class T>
INLINE Softmax soften(const Attending& a, const HeadBuffers<T>& kv, float* scores, int64_t head, int64_t position,
                      int64_t begin, int64_t end) {
    const Program& p = a.program;
    int64_t count = end - begin, seen = position + 1 - begin;  // scores[0 .. seen) are of the past
    int64_t hidden = a.layer.window ? position - a.layer.window + 1 - begin : 0;  // and [0, hidden) too far back
    float cap = (float)p.attention_softcap, slope = p.slopes ? p.slopes[head] : 0.0f;
    V most = all(-INFINITY), total = {};
    for (int64_t j = 0; j < count; j += LANES) {
        V s = load(scores + j);
        if (sizeof(T) == 1) s *= load_upto(kv.key_scales + begin + j, count - j);
        if (cap) s = cap * hyperbolic_tangent(s / cap);
        VI place = lanes() + (int32_t)j;
        if (slope) s -= slope * __builtin_convertvector((int32_t)(position - begin) - place, V);
        VI visible = (place < all_ints((int32_t)(seen < count ? seen : count))) & (place >= all_ints((int32_t)hidden));
        s = select(visible, s, all(-INFINITY));
        most = larger(most, s);
        store(scores + j, s);
    }
    float top = largest(most);
    if (top == -INFINITY) {
        memset(scores, 0, sizeof(float) * CHUNK);
        return {top, 0};
    }
    for (int64_t j = 0; j < count; j += LANES) {
        V e = exponential(load(scores + j) - top);
        total += e;
        if (sizeof(T) == 1) e *= load_upto(kv.value_scales + begin + j, count - j);
        store(scores + j, e);
    }
    return {top, sum(total)};
}

// Floats of scratch that a unit needs: QUERIES queries, their scores, and keys laid across.
INLINE int64_t floats_of_unit(int64_t N) {
    int64_t padded = (N + 15) / 16 * 16;
    return QUERIES * (padded + CHUNK) + padded * CHUNK;
}

// One unit.
template <class T>
static void attend_chunk(const Attending& a, const Sequence& s, int64_t head, int64_t chunk, float* partial,
                         float* scratch) {
    const Program& p = a.program;
    int64_t N = p.head_width, group = p.heads / p.kv_heads, queries = s.count * group, padded = (N + 15) / 16 * 16;
    int64_t begin = chunk * CHUNK, end = s.start + s.count < begin + CHUNK ? s.start + s.count : begin + CHUNK;
    HeadBuffers<T> kv = head_buffers<T>(a, s.slot, head);
    keep_new(a, kv, s, head, begin, end);
    const T *keys = kv.keys + begin * N, *values = kv.values + begin * N;
    float *query = scratch, *scores = query + QUERIES * padded;
    [[maybe_unused]] float* across = scores + QUERIES * CHUNK;
    float scale = (float)p.attention_scale;
#if LANES == 16
    if (s.count >= MANY_ROWS) lay_across(keys, end - begin, N, across);
#endif
    int64_t q = 0;
    for (; q < queries && s.start + q / group < begin; q++) partial[q * (N + 2) + N] = -INFINITY;  // sees none of it
    for (int64_t n; q < queries; q += n) {
        n = queries - q < QUERIES ? queries - q : QUERIES;
        int64_t newest = s.start + (q + n - 1) / group, seen = (newest < end ? newest + 1 : end) - begin, i = 0;
        for (i = 0; i < n; i++) {
            int64_t t = (q + i) / group, query_head = head * group + (q + i) % group;
            float* mine = query + i * padded;
            norm_row(a.layer.query_norm, a.projected + (s.row + t) * a.projected_stride + query_head * N, mine, N);
            rotate(a, mine, s.start + t);
            for (int64_t e = 0; e < padded; e++) mine[e] = e < N ? mine[e] * scale : 0.0f;
        }
        i = 0;
#if LANES == 16
        if (s.count >= MANY_ROWS) {
            for (; i + 2 <= n; i += 2) scores_across<2>(query + i * padded, padded, across, seen, scores + i * CHUNK);
            if (i < n) scores_across<1>(query + i * padded, padded, across, seen, scores + i * CHUNK), i++;
        }
#endif
        for (; i < n; i++) score(query + i * padded, keys, seen, N, scores + i * CHUNK);
        float* found = partial + q * (N + 2);
        for (i = 0; i < n; i++) {
            int64_t t = (q + i) / group, query_head = head * group + (q + i) % group;
            Softmax soft = soften(a, kv, scores + i * CHUNK, query_head, s.start + t, begin, begin + seen);
            found[i * (N + 2) + N] = soft.largest;
            found[i * (N + 2) + N + 1] = soft.sum;
        }
        for (i = 0; i + 6 <= n; i += 6) weigh<6>(scores + i * CHUNK, values, seen, N, found + i * (N + 2), N + 2);
        for (; i + 3 <= n; i += 3) weigh<3>(scores + i * CHUNK, values, seen, N, found + i * (N + 2), N + 2);
        for (; i < n; i++) weigh<1>(scores + i * CHUNK, values, seen, N, found + i * (N + 2), N + 2);
    }
}

// What the chunks of one head found, as one: `partial` (chunks, queries, N + 2).
static void add_chunks(const Attending& a, const Sequence& s, int64_t head, int64_t chunks, const float* partial) {
    const Program& p = a.program;
    int64_t N = p.head_width, group = p.heads / p.kv_heads, queries = s.count * group;
    for (int64_t q = 0; q < queries; q++) {
        const float* mine = partial + q * (N + 2);
        int64_t step = queries * (N + 2);
        float most = -INFINITY, total = 0;
        for (int64_t c = 0; c < chunks; c++) most = mine[c * step + N] > most ? mine[c * step + N] : most;
        float* out = a.attended + (s.row + q / group) * a.attended_stride + (head * group + q % group) * N;
        memset(out, 0, (size_t)N * 4);
        for (int64_t c = 0; c < chunks; c++) {
            if (mine[c * step + N] == -INFINITY) continue;  // nothing else was left there
            float weight = exponential(all(mine[c * step + N] - most))[0];
            total += weight * mine[c * step + N + 1];
            for (int64_t i = 0; i < N; i++) out[i] += weight * mine[c * step + i];
        }
        float inverse = 1.0f / total;
        for (int64_t i = 0; i < N; i++) out[i] *= inverse;
    }
}
