// Linear layers, with bias, and GELU if that follows: of rounded activations and weights, or in float32.
#pragma once
#include "../operator.h"

// What all of them have in common.
struct Layer {
    // y (n_tokens, n_outputs)
    static constexpr onnxruntime::ElementType OUTPUTS[] = {onnxruntime::FLOAT};

    explicit Layer(Attributes& attributes)
        : n_outputs(attributes.integer("n_outputs")), has_gelu(attributes.integer("gelu") != 0) {}

    // Call multiply(task, first token, first output) for panels (n_panels, n_steps, 32 or more), and for blocks of
    // tokens whose activations have bytes_of_task bytes at most.
    template <class Input, class Weight, class Multiply>
    void compute(Run& run, const Tensor<const Input>& x, const Tensor<const Weight>& panels, int64_t n_steps,
                 int64_t bytes_of_task, const Tensor<const float>& bias, const Multiply& multiply) const {
        const int64_t n_columns = panels.n_rows * PANEL;
        run.check(n_outputs > 0 && n_outputs <= n_columns && n_columns - n_outputs < PANEL,
                  "n_outputs does not fit the weights");
        run.check(!bias.data || bias.is_vector_of(n_outputs), "the bias does not fit the weights");
        const auto y = run.output<float>(0, x.n_rows, n_outputs);
        if (run.failure) return;
        const int64_t most = bytes_of_task / (x.n_columns * static_cast<int64_t>(sizeof(Input)) + 1) + 1;
        const int64_t n_blocks = (x.n_rows + most - 1) / most;
        run.each(n_blocks * panels.n_rows, [&](int64_t task) {
            const int64_t block = task / panels.n_rows, panel = task % panels.n_rows, column = panel * PANEL;
            const int64_t start = x.n_rows * block / n_blocks, stop = x.n_rows * (block + 1) / n_blocks;
            const LayerTask<Input, Weight> part{
                .x = x.data + start * x.n_columns,
                .n_tokens = stop - start,
                .stride = x.n_columns,
                .n_steps = n_steps,
                .panel = panels.data + panel * panels.n_columns,
                .bias = bias.data ? bias.data + column : nullptr,
                .n_outputs = n_outputs - column < PANEL ? n_outputs - column : PANEL,
                .has_gelu = has_gelu,
                .y = y.data + start * n_outputs + column,
                .y_stride = n_outputs,
            };
            multiply(part, start, column);
        });
    }

    int64_t n_outputs;
    bool has_gelu;
};

// Rounded activations and weights.
struct Linear : Layer {
    static constexpr const char* NAME = "Linear";
    // bytes (n_tokens, stride), token_scales (n_tokens,), panels (n_panels, n_quads, 32, 4), scales (n_panels * 32,),
    // sums (n_panels * 32,), bias (n_outputs,)
    static constexpr onnxruntime::ElementType INPUTS[] = {onnxruntime::UINT8, onnxruntime::FLOAT, onnxruntime::INT8,
                                                          onnxruntime::FLOAT, onnxruntime::INT32, onnxruntime::FLOAT};
    static constexpr size_t N_REQUIRED = 5;
    // A task's activations stay in the second cache, of 1 MB or more, beside a panel.
    static constexpr int64_t BYTES_OF_TASK = 768 * 1024;

    explicit Linear(Attributes& attributes) : Layer(attributes), zero_point(attributes.byte("zero_point")) {}

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
        Layer::compute(run, bytes, panels, n_quads, BYTES_OF_TASK, bias,
                       [&](const auto& part, int64_t token, int64_t column) {
                           kernels()->linear(
                               {part, token_scales.data + token, zero_point, scales.data + column, sums.data + column});
                       });
    }

    int zero_point;
};

struct FloatLinear : Layer {
    static constexpr const char* NAME = "FloatLinear";
    // x (n_tokens, n_inputs), panels (n_panels, n_inputs, 32), bias (n_outputs,)
    static constexpr onnxruntime::ElementType INPUTS[] = {onnxruntime::FLOAT, onnxruntime::FLOAT, onnxruntime::FLOAT};
    static constexpr size_t N_REQUIRED = 2;
    // A panel of 4,096 inputs takes half of the second cache, so activations come from the third. With blocks of
    // 768 KB, each of which reads all panels again, 256 and 512 tokens took 3 % longer.
    static constexpr int64_t BYTES_OF_TASK = 8 << 20;

    using Layer::Layer;

    void compute(Run& run) const {
        const auto x = run.input<float>(0), panels = run.input<float>(1), bias = run.input<float>(2);
        run.check(panels.n_columns == x.n_columns * PANEL, "the weights are not panels of 32 outputs and all inputs");
        Layer::compute(run, x, panels, x.n_columns, BYTES_OF_TASK, bias,
                       [](const auto& part, int64_t, int64_t) { kernels()->float_linear(part); });
    }
};
