// A linear layer of rounded activations and weights, with its bias, and GELU if that follows.
#pragma once
#include "../operator.h"

struct Linear {
    static constexpr const char* NAME = "Linear";
    // bytes (n_tokens, stride), token_scales (n_tokens,), panels (n_panels, n_quads, 32, 4), scales (n_panels * 32,),
    // sums (n_panels * 32,), bias (n_outputs,)
    static constexpr onnxruntime::ElementType INPUTS[] = {onnxruntime::UINT8, onnxruntime::FLOAT, onnxruntime::INT8,
                                                          onnxruntime::FLOAT, onnxruntime::INT32, onnxruntime::FLOAT};
    static constexpr size_t N_REQUIRED = 5;
    // y (n_tokens, n_outputs)
    static constexpr onnxruntime::ElementType OUTPUTS[] = {onnxruntime::FLOAT};
    // A task's activations stay in the second cache, of 1 MB or more, beside a panel.
    static constexpr int64_t BYTES_OF_TASK = 768 * 1024;

    explicit Linear(Attributes& attributes)
        : n_outputs(attributes.integer("n_outputs")),
          zero_point(attributes.byte("zero_point")),
          has_gelu(attributes.integer("gelu") != 0) {}

    void compute(Run& run) const {
        const auto bytes = run.input<uint8_t>(0);
        const auto token_scales = run.input<float>(1);
        const auto panels = run.input<int8_t>(2);
        const auto scales = run.input<float>(3);
        const auto sums = run.input<int32_t>(4);
        const auto bias = run.input<float>(5);
        const int64_t n_columns = panels.n_rows * PANEL, n_quads = panels.n_columns / (PANEL * 4);
        run.check(panels.n_columns % (PANEL * 4) == 0, "the weights are not panels of 32 outputs and 4 inputs");
        run.check(n_quads <= MOST_QUADS, "the weights have more than 65,536 inputs");
        run.check(token_scales.is_vector_of(bytes.n_rows), "there is not one scale for each token");
        run.check(n_quads * 4 <= bytes.n_columns, "the weights have more inputs than the activations");
        run.check(scales.is_vector_of(n_columns) && sums.is_vector_of(n_columns),
                  "scales or sums do not fit the weights");
        run.check(n_outputs > 0 && n_outputs <= n_columns && n_columns - n_outputs < PANEL,
                  "n_outputs does not fit the weights");
        run.check(!bias.data || bias.is_vector_of(n_outputs), "the bias does not fit the weights");
        const auto y = run.output<float>(0, bytes.n_rows, n_outputs);
        if (run.failure) return;
        const int64_t most = BYTES_OF_TASK / (bytes.n_columns + 1) + 1;
        const int64_t n_blocks = (bytes.n_rows + most - 1) / most;
        run.each(n_blocks * panels.n_rows, [&](int64_t task) {
            const int64_t block = task / panels.n_rows, panel = task % panels.n_rows, column = panel * PANEL;
            const int64_t start = bytes.n_rows * block / n_blocks, stop = bytes.n_rows * (block + 1) / n_blocks;
            kernels()->linear({
                .bytes = bytes.data + start * bytes.n_columns,
                .token_scales = token_scales.data + start,
                .n_tokens = stop - start,
                .stride = bytes.n_columns,
                .n_quads = n_quads,
                .zero_point = zero_point,
                .panel = panels.data + panel * panels.n_columns,
                .scales = scales.data + column,
                .sums = sums.data + column,
                .bias = bias.data ? bias.data + column : nullptr,
                .n_outputs = n_outputs - column < PANEL ? n_outputs - column : PANEL,
                .has_gelu = has_gelu,
                .y = y.data + start * n_outputs + column,
                .y_stride = n_outputs,
            });
        });
    }

    int64_t n_outputs;
    int zero_point;
    bool has_gelu;
};
