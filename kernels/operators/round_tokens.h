// Activations as bytes, each token by a scale of its own.
#pragma once
#include "../operator.h"

struct RoundTokens {
    static constexpr const char* NAME = "RoundTokens";
    // x (n_tokens, n_inputs), factors (n_inputs,) that inputs are multiplied with before
    static constexpr onnxruntime::ElementType INPUTS[] = {onnxruntime::FLOAT, onnxruntime::FLOAT};
    static constexpr size_t N_REQUIRED = 1;
    // bytes (n_tokens, stride), scales (n_tokens,)
    static constexpr onnxruntime::ElementType OUTPUTS[] = {onnxruntime::UINT8, onnxruntime::FLOAT};

    explicit RoundTokens(Attributes& attributes)
        : zero_point(attributes.byte("zero_point")), floor(attributes.number("floor")) {
        attributes.check(zero_point < 255, "zero_point leaves no bytes above it");
        attributes.check(floor > 0, "floor is not above 0");
    }

    void compute(Run& run) const {
        const auto x = run.input<float>(0), factors = run.input<float>(1);
        run.check(!factors.data || factors.is_vector_of(x.n_columns), "factors do not fit the inputs");
        // An odd number of lines of the cache: rows 4,096 bytes apart would all fall into the same few places in it.
        const int64_t stride = ((x.n_columns + 63) / 64 | 1) * 64;
        const auto bytes = run.output<uint8_t>(0, x.n_rows, stride);
        const auto scales = run.output<float>(1, x.n_rows);
        run.each_block(x.n_rows, [&](int64_t start, int64_t n_tokens) {
            kernels()->round_tokens({
                .x = x.data + start * x.n_columns,
                .factors = factors.data,
                .n_tokens = n_tokens,
                .n_inputs = x.n_columns,
                .zero_point = zero_point,
                .floor = floor,
                .bytes = bytes.data + start * stride,
                .stride = stride,
                .scales = scales.data + start,
            });
        });
    }

    int zero_point;
    float floor;
};
