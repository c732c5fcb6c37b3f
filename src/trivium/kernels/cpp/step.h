// All layers of a decoder for some new rows, in one parallel region.
//
// Threads meet five times a layer: when queries, keys and values are made, when attention is done, and after each of
// the output, up and down products. Of a few rows every thread keeps the residual stream for itself and repeats norms,
// which costs less than to wait for the others; many rows are shared out, and threads meet after each norm as well.
// Products are shared out by rows of the matrices, attention by units.

INLINE int64_t padded(int64_t width) { return (width + 127) / 128 * 128; }  // for the widest group of int4
INLINE int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }  // of the cache

constexpr int64_t SHARED_ROWS = 33;  // so many rows are shared out

static bool any_rounds(const Program& p) {
    bool any = p.head.kind == INT8_DYNAMIC;
    for (int64_t i = 0; i < p.layers; i++) {
        const Layer& l = p.layer[i];
        for (const Matrix* a : {&l.query, &l.key, &l.value, &l.output, &l.gate, &l.up, &l.down})
            any |= a->kind == INT8_DYNAMIC;
    }
    return any;
}

// What lies where in the scratch memory, in floats.
struct Places {
    int64_t width, heads, inner, projected;  // strides of rows
    int64_t partial, unit_scratch, counters, rounded, panel, stream;
    int64_t private_floats, total;
    bool shared;
};
static Places places_of(const Step& step, int threads) {
    const Program& p = *step.program;
    int64_t N = p.head_width;
    Places at = {};
    at.shared = step.rows >= SHARED_ROWS;
    at.width = padded(p.width);
    at.heads = padded(p.heads * N);
    at.inner = padded(p.mlp_width);
    at.projected = padded((p.heads + 2 * p.kv_heads) * N);
    for (int64_t i = 0; i < step.num_sequences; i++) {
        const Sequence& s = step.sequences[i];
        Chunks c = chunks_seen(s, 0);
        at.partial += (c.last - c.first + 1) * p.heads * s.count * (N + 2);
    }
    at.unit_scratch = whole_lines(floats_of_unit(N));
    at.counters = p.layers * (1 + step.num_sequences * p.kv_heads);
    if (any_rounds(p)) {
        int64_t widest = at.width > at.heads ? at.width : at.heads;
        widest = widest > at.inner ? widest : at.inner;
        at.rounded = floats_of_rounded(step.rows, widest);
        at.panel = step.rows >= MANY ? bytes_of_panel(widest) / 4 : 0;
    }
    at.stream = step.rows * 2 * at.width + at.rounded;  // residual stream, normed rows, and those rounded
    at.private_floats = at.unit_scratch + at.panel + (at.shared ? 0 : whole_lines(at.stream));
    int64_t shared = step.rows * (at.projected + at.heads + 2 * at.inner + at.width) + at.partial + at.counters;
    at.total = shared + threads * at.private_floats + (at.shared ? at.stream : 0) + 16 * 16;
    return at;
}
static int64_t scratch(const Step& step, int threads) { return places_of(step, threads).total; }

// The residual stream and the normed rows: of one thread, or of all, each of which then works on a part of the rows.
struct Stream {
    float *x, *normed, *rounded;
    uint8_t* panel;
    int64_t rows, width, stride;
    int thread, threads;
    bool shared;

    void meet() const {
        if (shared) {
#pragma omp barrier
        }
    }
    Share part(int64_t of) const { return shared ? Share{of * thread / threads, of * (thread + 1) / threads} : Share{0, of}; }

    // Rows ready for their readers, some of which may want them rounded.
    Vectors ready(const float* from, int64_t from_stride, int64_t count, std::initializer_list<const Matrix*> readers) {
        Rounded codes = {};
        for (const Matrix* reader : readers)
            if (reader->kind == INT8_DYNAMIC && reader->outputs) {
                meet();  // the codes before may still be read
                codes = rounded_in(rounded, count, reader->inputs);
                for (int64_t m = part(count).begin; m < part(count).end; m++)
                    round_row(from + m * from_stride, reader->inputs, codes, m);
                break;
            }
        meet();
        return {from, from_stride, count, codes, panel};
    }
    Vectors norm(const Norm& how, std::initializer_list<const Matrix*> readers) {
        meet();  // the rows before may still be read
        for (int64_t m = part(rows).begin; m < part(rows).end; m++)
            norm_row(how, x + m * stride, normed + m * stride, width);
        return ready(normed, stride, rows, readers);
    }
    // x + norm(written), and with `post` the norm of that.
    void add(const float* written, const Norm& output_norm, const Norm& norm, bool post) {
        for (int64_t m = part(rows).begin; m < part(rows).end; m++) {
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
static void up_product(const Program& p, const Layer& l, const Vectors& x, float* inner, float* gate, int64_t stride,
                       int thread, int threads) {
    Share mine = share_of(l.up.outputs, thread, threads);
    bool gated = l.gate.outputs > 0;
    times(l.up, x, mine.begin, mine.end, {inner, stride, false});
    if (gated) times(l.gate, x, mine.begin, mine.end, {gate, stride, false});
    for (int64_t m = 0; m < x.count; m++) {
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
    auto project = [&](const Matrix& a, const Vectors& x, float* out, int64_t stride, bool add) {
        Share mine = share_of(a.outputs, thread, threads);
        times(a, x, mine.begin, mine.end, {out, stride, add});
    };
    const Norm none = {};
    Vectors x = stream.norm(p.post_norm ? none : l.attention_norm, {&l.query, &l.key, &l.value});
    project(l.query, x, b.projected, at.projected, false);
    project(l.key, x, b.projected + p.heads * N, at.projected, false);
    project(l.value, x, b.projected + (p.heads + p.kv_heads) * N, at.projected, false);
    if (p.parallel)
        up_product(p, l, stream.norm(l.mlp_norm, {&l.up, &l.gate}), b.inner, b.gate, at.inner, thread, threads);
#pragma omp barrier
    clock.lap(PRODUCTS);
    Attending a = {p, l, *step.slots, index, b.projected, at.projected, b.attended, at.heads, b.partial};
    attend_kind(a, step, b.counters + index * (1 + step.num_sequences * p.kv_heads), unit_scratch);
#pragma omp barrier
    clock.lap(ATTENTION);
    project(l.output, stream.ready(b.attended, at.heads, rows, {&l.output}), b.written, at.width, false);
    if (!p.parallel) {
#pragma omp barrier
        stream.add(b.written, l.attention_output_norm, l.attention_norm, p.post_norm);
        x = stream.norm(p.post_norm ? none : l.mlp_norm, {&l.up, &l.gate});
        up_product(p, l, x, b.inner, b.gate, at.inner, thread, threads);
#pragma omp barrier
    }
    project(l.down, stream.ready(b.inner, at.inner, rows, {&l.down}), b.written, at.width, p.parallel);
#pragma omp barrier
    stream.add(b.written, p.parallel ? none : l.mlp_output_norm, l.mlp_norm, p.post_norm);
    clock.lap(PRODUCTS);
}

static void head_step(const Step& step, const Places& at, Stream& stream, int thread, int threads) {
    const Program& p = *step.program;
    stream.meet();  // a chosen row may have been another thread's
    for (int64_t i = stream.part(step.num_chosen).begin; i < stream.part(step.num_chosen).end; i++) {
        float* row = stream.normed + i * at.width;
        norm_row(p.norm, stream.x + step.chosen[i] * at.width, row, p.width);
        for (int64_t d = 0; d < p.width; d++) row[d] *= (float)p.logit_scale;
    }
    Share mine = share_of(p.head.outputs, thread, threads);
    Vectors rows = stream.ready(stream.normed, at.width, step.num_chosen, {&p.head});
    times(p.head, rows, mine.begin, mine.end, {step.logits, p.head.outputs, false});
}

static void step(const Step& step, float* scratch, int threads) {
    const Program& p = *step.program;
    Places at = places_of(step, threads);
    float* next = scratch;
    auto take = [&](int64_t floats) {
        float* taken = next;
        next += whole_lines(floats);
        return taken;
    };
    int64_t rows = step.rows;
    Buffers b = {take(rows * at.projected), take(rows * at.heads), take(rows * at.inner), take(rows * at.inner),
                 take(rows * at.width), nullptr, nullptr};
    b.counters = (int32_t*)take(at.counters);
    float* shared_stream = take(at.shared ? at.stream : 0);
    float* privates = take(threads * at.private_floats);
    // Counters begin at 0, and so do the tails of rows that int4 pads.
    memset(scratch, 0, sizeof(float) * (size_t)(next - scratch));
    b.partial = take(at.partial);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int thread = omp_get_thread_num(), all_threads = omp_get_num_threads();
        float* mine = privates + thread * at.private_floats;
        float *unit_scratch = mine, *panel = mine + at.unit_scratch;
        float* x = at.shared ? shared_stream : panel + at.panel;
        float *normed = x + rows * at.width, *rounded = normed + rows * at.width;
        Stream stream = {x,       normed,   rounded, (uint8_t*)panel, rows,
                         p.width, at.width, thread,  all_threads,     at.shared};
        for (int64_t m = stream.part(rows).begin; m < stream.part(rows).end; m++)
            memcpy(x + m * at.width, step.embedded + m * p.width, sizeof(float) * (size_t)p.width);
        Clock clock = {thread ? nullptr : step.seconds, omp_get_wtime()};
        for (int64_t i = 0; i < p.layers; i++)
            layer_step(step, i, at, b, stream, unit_scratch, thread, all_threads, clock);
        if (step.num_chosen) head_step(step, at, stream, thread, all_threads);
#pragma omp barrier
        clock.lap(HEAD);
    }
}
