// What an instruction set computes: one table of functions for each, and the tasks that they take.
//
// A task is a part of an operator's work that no other part depends on. It knows no threads and no ONNX Runtime.
#pragma once
#include <cstdint>

// Outputs of a linear layer are computed 32 at a time. The weights of 32 outputs are stored together, as a panel: of
// integers (n_inputs / 4, 32, 4), of floats (n_inputs, 32).
constexpr long PANEL = 32;
// 255 * 128 * 65,536 is less than 2^31, so sums of the products of more inputs might not fit 32 bits.
constexpr long MOST_QUADS = 65536 / 4;
// Wider heads would have less than 11 bits and a sign for a feature of a query.
constexpr long LARGEST_HEAD = 512;
// More shares of 15 bits than these would not fit sums of 32 bits.
constexpr long LONGEST_ROW = 1 << 20;

// Round n_tokens rows of activations to bytes, each by a scale of its own.
struct RoundingTask {
    const float* x;        // (n_tokens, n_inputs)
    const float* factors;  // (n_inputs,) what inputs are multiplied with before, or null
    long n_tokens, n_inputs;
    int zero_point;        // the byte that stands for 0
    float floor;           // of the scale
    uint8_t* bytes;        // (n_tokens, stride); bytes after a row's inputs are zero_point
    long stride;
    float* scales;         // (n_tokens,)
};

// Multiply activations by one panel of a layer's weights.
template <class Input, class Weight>
struct LayerTask {
    const Input* x;       // (n_tokens, stride)
    long n_tokens, stride;
    long n_steps;         // four inputs of 8 bits are multiplied at once, or one float
    const Weight* panel;  // (n_steps, 32, 4), or (n_steps, 32)
    const float* bias;    // (n_outputs,) or null
    long n_outputs;       // of the panel's columns so many are outputs
    bool has_gelu;
    float* y;             // (n_tokens, y_stride)
    long y_stride;
};

using FloatLinearTask = LayerTask<float, float>;

// Rounded activations, and weights from -127 to 127.
struct LinearTask : LayerTask<uint8_t, int8_t> {
    const float* token_scales;  // (n_tokens,)
    int zero_point;
    const float* scales;        // (32,) of the weights
    const int32_t* sums;        // (32,) of the weights
};

// Attend from some tokens to all tokens of their row, in one head.
struct AttentionTask {
    const float *queries, *keys, *values;  // the head's features of the first token of each
    long query_stride, key_stride, value_stride;
    long n_queries, n_keys, head_size;
    float scale;
    float* y;
    long y_stride;
    float* scratch;  // as many floats as scratch_size says, at a multiple of 64 bytes
};

// Normalise x + y.
struct NormTask {
    const float *x, *y;           // (n_tokens, n_features)
    const float *weight, *bias;   // (n_features,); the bias may be null
    long n_tokens, n_features;
    float epsilon;
    float* z;                     // (n_tokens, n_features)
};

// Attention in one kind of numbers.
struct AttentionKernel {
    long (*scratch_size)(long n_keys, long head_size);
    void (*attend)(const AttentionTask&);
};

struct Kernels {
    const char* name;
    void (*round_tokens)(const RoundingTask&);
    void (*linear)(const LinearTask&);
    void (*float_linear)(const FloatLinearTask&);
    AttentionKernel attention, float_attention;
    void (*add_norm)(const NormTask&);
};

// The best table for this processor, or the one that RANKRT_KERNELS names. Null where there is none.
const Kernels* kernels();
