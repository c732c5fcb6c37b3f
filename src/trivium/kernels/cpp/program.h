// What Python hands to the kernels: plain structures of 8-byte fields, mirrored in `trivium/kernels/structures.py`.
//
// Letters as in `trivium/models`: D width, H query heads, K key/value heads, N head width, F MLP width, V vocabulary.
// All buffers belong to Python (torch tensors, contiguous); the kernels keep none of them.
#pragma once
#include <cstdint>

// INT8_DYNAMIC is stored as INT8 and meets vectors that are rounded to int8 as well.
enum MatrixKind : int64_t { FP32, BF16, FP16, INT8, INT4, INT4_ASYMMETRIC, INT8_DYNAMIC };
enum NormKind : int64_t { NO_NORM = 0, RMS_NORM = 1, LAYER_NORM = 2 };
enum Activation : int64_t { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

// A linear layer y = W x + bias, W being (outputs, inputs).
struct Matrix {
    int64_t kind;         // MatrixKind
    int64_t outputs;
    int64_t inputs;       // elements of a row as stored; of int4 a multiple of the group
    int64_t group;        // inputs that share a scale (int4)
    const void* packed;   // fp32, bf16, fp16 or int8 (outputs, inputs); int4: bytes (outputs, inputs / 2)
    const void* scales;   // int8: fp32 (outputs); int4: fp16 (outputs, inputs / group)
    const void* offsets;  // asymmetric int4: fp16 (outputs, inputs / group)
    const float* bias;    // (outputs) or null
};

struct Norm {
    int64_t kind;  // NormKind
    double eps;
    const float* weight;
    const float* bias;  // or null
};

struct Layer {
    Norm attention_norm, attention_output_norm, query_norm, key_norm, mlp_norm, mlp_output_norm;
    Matrix query, key, value, output, gate, up, down;  // `gate` has no outputs in a plain MLP
    const float* cosines;                              // (positions, rotated / 2), or null: nothing is rotated
    const float* sines;
    int64_t window;  // positions seen back, the own one included; 0: all
};

struct Program {
    int64_t layers, width, heads, kv_heads, head_width, mlp_width;
    int64_t rotated;  // elements of a head that are rotated
    int64_t activation, parallel, post_norm;
    double attention_scale, attention_softcap, logit_scale;
    const float* slopes;  // (H) of ALiBi, or null
    Norm norm;            // the last
    Matrix head;
    const Layer* layer;
};

// Where keys and values of the slots lie: for every layer (slots, K, capacity, N), and scales (slots, K, capacity).
struct KeysValues {
    int64_t kind;  // MatrixKind of what is stored: FP32, BF16, FP16 or INT8
    int64_t capacity;
    void* const* keys;
    void* const* values;
    float* const* key_scales;  // INT8 only
    float* const* value_scales;
};

// New rows of one slot: `count` rows from `row` on, the first of them at position `start`.
struct Sequence {
    int64_t slot, start, count, row;
};

struct Step {
    const Program* program;
    const KeysValues* slots;
    const Sequence* sequences;
    int64_t num_sequences;
    int64_t rows;            // of all sequences together
    const float* embedded;   // (rows, D)
    const int64_t* chosen;   // the rows whose logits are wanted
    int64_t num_chosen;
    float* logits;           // (num_chosen, V)
    double* seconds;         // (3), added to: layers' products and norms, attention, head; or null
};

// The functions of one level of vector instructions.
struct Level {
    const char* name;
    // x (rows, x_stride) times W^T + bias -> out (rows, outputs)
    void (*linear)(const Matrix&, const float* x, int64_t x_stride, int64_t rows, float* out, int threads);
    void (*step)(const Step&, float* scratch, int threads);
    // floats of scratch that `step` needs
    int64_t (*scratch)(const Step&, int threads);
};
