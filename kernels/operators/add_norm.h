// The sum of two states, normalised over the features of each token.
#pragma once
#include "../operator.h"

struct AddNorm {
    static constexpr const char* NAME = "AddNorm";
    // x and y (n_tokens, n_features), weight and bias (n_features,)
    static constexpr onnxruntime::ElementType INPUTS[] = {onnxruntime::FLOAT, onnxruntime::FLOAT, onnxruntime::FLOAT,
                                                          onnxruntime::FLOAT};
    static constexpr size_t N_REQUIRED = 3;
    static constexpr onnxruntime::ElementType OUTPUTS[] = {onnxruntime::FLOAT};

    explicit AddNorm(Attributes& attributes) : epsilon(attributes.number("epsilon")) {
        attributes.check(epsilon >= 0, "epsilon is negative");
    }

    void compute(Run& run) const {
        const auto x = run.input<float>(0), y = run.input<float>(1), weight = run.input<float>(2);
        const auto bias = run.input<float>(3);
        run.check(x.n_rows == y.n_rows && x.n_columns == y.n_columns, "x and y differ in shape");
        run.check(weight.is_vector_of(x.n_columns), "the weight does not fit the states");
        run.check(!bias.data || bias.is_vector_of(x.n_columns), "the bias does not fit the states");
        const auto z = run.output<float>(0, x.n_rows, x.n_columns);
        run.each_block(x.n_rows, [&](int64_t start, int64_t n_tokens) {
            const int64_t offset = start * x.n_columns;
            kernels()->add_norm({
                .x = x.data + offset,
                .y = y.data + offset,
                .weight = weight.data,
                .bias = bias.data,
                .n_tokens = n_tokens,
                .n_features = x.n_columns,
                .epsilon = epsilon,
                .z = z.data + offset,
            });
        });
    }

    float epsilon;
};
