// All layers of a decoder for a few new rows, in one parallel region.
//
// Threads meet five times a layer: when queries, keys and values are made, when attention is done, and after each of
// the output, up and down products. Every thread keeps the residual stream of all rows for itself and repeats norms,
// which costs less than to wait for them; products are shared out by rows of the matrices, attention by units.

INLINE int64_t padded(int64_t width) { return (width + 127) / 128 * 128; }  // for the widest group of int4

// What lies where in the scratch memory, in floats.
struct Places {
    int64_t width, heads, inner, projected;  // strides of rows
    int64_t partial, unit_scratch, counters;
    int64_t private_floats, total;
};
static Places places_of(const Step& step, int threads) {
    const Program& p = *step.program;
    int64_t N = p.head_width, most = 0, group = p.heads / p.kv_heads;
    Places at = {};
    at.width = padded(p.width);
    at.heads = padded(p.heads * N);
    at.inner = padded(p.mlp_width);
    at.projected = padded((p.heads + 2 * p.kv_heads) * N);
    for (int64_t i = 0; i < step.num_sequences; i++) {
        const Sequence& s = step.sequences[i];
        Chunks c = chunks_seen(s, 0);
        at.partial += (c.last - c.first + 1) * p.heads * s.count * (N + 2);
        most = s.count > most ? s.count : most;
    }
    at.unit_scratch = most * group * ((N + 15) / 16 * 16 + CHUNK);
    at.counters = p.layers * (1 + step.num_sequences * p.kv_heads);
    at.private_floats = step.rows * 2 * at.width + at.unit_scratch;  // residual stream, normed rows
    int64_t shared = step.rows * (at.projected + at.heads + 2 * at.inner + at.width) + at.partial + at.counters;
    at.total = shared + threads * at.private_floats + 64;
    return at;
}
static int64_t scratch(const Step& step, int threads) { return places_of(step, threads).total; }

// The residual stream and the normed rows of one thread.
struct Stream {
    float *x, *normed;
    int64_t rows, width, stride;

    const float* norm(const Norm& how) {
        for (int64_t m = 0; m < rows; m++) norm_row(how, x + m * stride, normed + m * stride, width);
        return normed;
    }
    // x + norm(written), and with `post` the norm of that.
    void add(const float* written, const Norm& output_norm, const Norm& norm, bool post) {
        for (int64_t m = 0; m < rows; m++) {
            float* row = x + m * stride;
            norm_row(output_norm, written + m * stride, normed + m * stride, width);
            for (int64_t i = 0; i < width; i++) row[i] += normed[m * stride + i];
            if (post) norm_row(norm, row, row, width);
        }
    }
};

// activation(gate) * up, or activation(up), over `up`.
static void activate(const Program& p, const float* gate, float* up, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t left = count - i;
        V u = load_upto(up + i, left);
        V v = gate ? activated(load_upto(gate + i, left), p.activation) * u : activated(u, p.activation);
        store_upto(up + i, v, left);
    }
}

// The inner width of the MLP: this thread's share of it, through the activation.
static void up_product(const Program& p, const Layer& l, const float* x, int64_t x_stride, int64_t rows, float* inner,
                       float* gate, int64_t stride, int thread, int threads) {
    Share mine = share_of(l.up.outputs, thread, threads);
    bool gated = l.gate.outputs > 0;
    times(l.up, x, x_stride, rows, mine.begin, mine.end, {inner, stride, false});
    if (gated) times(l.gate, x, x_stride, rows, mine.begin, mine.end, {gate, stride, false});
    for (int64_t m = 0; m < rows; m++) {
        int64_t at = m * stride + mine.begin;
        activate(p, gated ? gate + at : nullptr, inner + at, mine.end - mine.begin);
    }
}

template <class T>
static void attend(const Attending& a, const Step& step, int32_t* counters, float* unit_scratch) {
    const Program& p = *step.program;
    int64_t K = p.kv_heads, N = p.head_width, group = p.heads / K;
    for (;;) {
        int64_t unit = __atomic_fetch_add(counters, 1, __ATOMIC_RELAXED);
        float* partial = a.partial;
        int64_t i = 0, chunks = 0;
        Chunks seen = {};
        for (; i < step.num_sequences; i++) {
            seen = chunks_seen(step.sequences[i], a.layer.window);
            chunks = seen.last - seen.first + 1;
            if (unit < chunks * K) break;
            unit -= chunks * K;
            partial += chunks * p.heads * step.sequences[i].count * (N + 2);
        }
        if (i == step.num_sequences) return;
        const Sequence& s = step.sequences[i];
        int64_t head = unit / chunks, chunk = unit % chunks, floats = s.count * group * (N + 2);
        float* of_head = partial + head * chunks * floats;
        attend_chunk<T>(a, s, head, seen.first + chunk, of_head + chunk * floats, unit_scratch);
        if (__atomic_add_fetch(counters + 1 + i * K + head, 1, __ATOMIC_ACQ_REL) == chunks)
            add_chunks(a, s, head, chunks, of_head);
    }
}
static void attend_kind(const Attending& a, const Step& step, int32_t* counters, float* unit_scratch) {
    switch (a.slots.kind) {
    case FP32: return attend<float>(a, step, counters, unit_scratch);
    case BF16: return attend<bf16>(a, step, counters, unit_scratch);
    case FP16: return attend<fp16>(a, step, counters, unit_scratch);
    default: return attend<int8_t>(a, step, counters, unit_scratch);
    }
}

// Adds the time since it was last asked to one of the sums of `Step::seconds`; of the first thread only.
struct Clock {
    double* sums;
    double before;
    void lap(int which) {
        if (!sums) return;
        double now = omp_get_wtime();
        sums[which] += now - before;
        before = now;
    }
};
enum { PRODUCTS = 0, ATTENTION = 1, HEAD = 2 };

// The buffers that threads share.
struct Buffers {
    float *projected, *attended, *inner, *gate, *written, *partial;
    int32_t* counters;
};

static void layer_step(const Step& step, int64_t index, const Places& at, const Buffers& b, Stream& stream,
                       float* unit_scratch, int thread, int threads, Clock& clock) {
    const Program& p = *step.program;
    const Layer& l = p.layer[index];
    int64_t N = p.head_width, rows = step.rows;
    auto project = [&](const Matrix& a, const float* x, int64_t x_stride, float* out, int64_t stride, bool add) {
        Share mine = share_of(a.outputs, thread, threads);
        times(a, x, x_stride, rows, mine.begin, mine.end, {out, stride, add});
    };
    const Norm none = {};
    const float* x = stream.norm(p.post_norm ? none : l.attention_norm);
    project(l.query, x, at.width, b.projected, at.projected, false);
    project(l.key, x, at.width, b.projected + p.heads * N, at.projected, false);
    project(l.value, x, at.width, b.projected + (p.heads + p.kv_heads) * N, at.projected, false);
    if (p.parallel)
        up_product(p, l, stream.norm(l.mlp_norm), at.width, rows, b.inner, b.gate, at.inner, thread, threads);
#pragma omp barrier
    clock.lap(PRODUCTS);
    Attending a = {p, l, *step.slots, index, b.projected, at.projected, b.attended, at.heads, b.partial};
    attend_kind(a, step, b.counters + index * (1 + step.num_sequences * p.kv_heads), unit_scratch);
#pragma omp barrier
    clock.lap(ATTENTION);
    project(l.output, b.attended, at.heads, b.written, at.width, false);
    if (!p.parallel) {
#pragma omp barrier
        stream.add(b.written, l.attention_output_norm, l.attention_norm, p.post_norm);
        x = stream.norm(p.post_norm ? none : l.mlp_norm);
        up_product(p, l, x, at.width, rows, b.inner, b.gate, at.inner, thread, threads);
#pragma omp barrier
    }
    project(l.down, b.inner, at.inner, b.written, at.width, p.parallel);
#pragma omp barrier
    stream.add(b.written, p.parallel ? none : l.mlp_output_norm, l.mlp_norm, p.post_norm);
    clock.lap(PRODUCTS);
}

static void head_step(const Step& step, const Places& at, Stream& stream, int thread, int threads) {
    const Program& p = *step.program;
    for (int64_t i = 0; i < step.num_chosen; i++) {
        float* row = stream.normed + i * at.width;
        norm_row(p.norm, stream.x + step.chosen[i] * at.width, row, p.width);
        for (int64_t d = 0; d < p.width; d++) row[d] *= (float)p.logit_scale;
    }
    Share mine = share_of(p.head.outputs, thread, threads);
    times(p.head, stream.normed, at.width, step.num_chosen, mine.begin, mine.end, {step.logits, p.head.outputs, false});
}

static void step(const Step& step, float* scratch, int threads) {
    const Program& p = *step.program;
    Places at = places_of(step, threads);
    float* next = scratch;
    auto take = [&](int64_t floats) {
        float* taken = next;
        next += floats;
        return taken;
    };
    int64_t rows = step.rows;
    Buffers b = {take(rows * at.projected), take(rows * at.heads), take(rows * at.inner), take(rows * at.inner),
                 take(rows * at.width), nullptr, nullptr};
    b.counters = (int32_t*)take(at.counters);
    float* privates = take(threads * at.private_floats);
    // Counters begin at 0, and so do the tails of rows that int4 pads.
    memset(scratch, 0, sizeof(float) * (size_t)(next - scratch));
    b.partial = take(at.partial);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int thread = omp_get_thread_num(), all_threads = omp_get_num_threads();
        float* mine = privates + thread * at.private_floats;
        Stream stream = {mine, mine + rows * at.width, rows, p.width, at.width};
        for (int64_t m = 0; m < rows; m++)
            memcpy(stream.x + m * at.width, step.embedded + m * p.width, sizeof(float) * (size_t)p.width);
        Clock clock = {thread ? nullptr : step.seconds, omp_get_wtime()};
        for (int64_t i = 0; i < p.layers; i++)
            layer_step(step, i, at, b, stream, stream.normed + rows * at.width, thread, all_threads, clock);
        if (step.num_chosen) head_step(step, at, stream, thread, all_threads);
#pragma omp barrier
        clock.lap(HEAD);
    }
}
