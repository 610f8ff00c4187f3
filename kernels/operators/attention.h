// Attention over packed rows: each token attends to all tokens of its row, or only the row's first token does.
#pragma once
#include <string.h>

#include <atomic>

#include "../operator.h"
#include "places.h"

template <AttentionKernel Kernels::* kernel>
struct Attending {
    // queries (n_tokens or n_rows, n_heads * size), keys and values (n_tokens, n_heads * size), offsets (n_rows + 1,)
    static constexpr onnxruntime::ElementType INPUTS[] = {onnxruntime::FLOAT, onnxruntime::FLOAT, onnxruntime::FLOAT,
                                                          onnxruntime::INT32};
    static constexpr size_t N_REQUIRED = 4;
    // as the queries
    static constexpr onnxruntime::ElementType OUTPUTS[] = {onnxruntime::FLOAT};
    // Keys and values are copied once for so many queries, which then costs little.
    static constexpr int64_t QUERIES_OF_TASK = 384;

    explicit Attending(Attributes& attributes)
        : n_heads(attributes.integer("n_heads")), first_only(attributes.integer("first_only") != 0) {
        attributes.check(n_heads > 0, "n_heads is not above 0");
    }

    void compute(Run& run) const {
        const auto queries = run.input<float>(0), keys = run.input<float>(1), values = run.input<float>(2);
        const auto offsets = run.input<int32_t>(3);
        run.check(Places::is_ascending(offsets), "row_offsets do not ascend from 0");
        if (run.failure) return;
        const int64_t n_rows = offsets.n_rows - 1, n_tokens = offsets.data[n_rows], n_features = queries.n_columns;
        const int64_t size = n_features / n_heads;
        run.check(keys.n_rows == n_tokens && values.n_rows == n_tokens, "row_offsets do not end where the tokens end");
        run.check(queries.n_rows == (first_only ? n_rows : n_tokens), "there are more or fewer queries than tokens");
        run.check(keys.n_columns == n_features && values.n_columns == n_features, "keys and queries differ in size");
        run.check(size > 0 && n_features % n_heads == 0, "the features cannot be divided among the heads");
        run.check(size <= LARGEST_HEAD, "a head has more than 512 features");
        run.check(longest(offsets) <= LONGEST_ROW, "a row has more than 1,048,576 tokens");
        const auto y = run.output<float>(0, queries.n_rows, n_features);
        if (run.failure) return;
        // A row without tokens has nothing to attend to.
        for (int64_t row = 0; first_only && row < n_rows; row++)
            if (blocks_of(offsets, row) == 0) memset(y.data + row * n_features, 0, n_features * sizeof(float));
        std::atomic<bool> has_memory = true;
        // Tasks are (row, block of queries, head): few enough to be found by looking.
        int64_t n_blocks = 0;
        for (int64_t row = 0; row < n_rows; row++) n_blocks += blocks_of(offsets, row);
        run.each(n_blocks * n_heads, [&](int64_t task) {
            int64_t block = task / n_heads, row = 0;
            for (; block >= blocks_of(offsets, row); row++) block -= blocks_of(offsets, row);
            const int64_t head = (task % n_heads) * size, first_key = offsets.data[row];
            const int64_t n_keys = offsets.data[row + 1] - first_key, n_queries = first_only ? 1 : n_keys;
            const int64_t n_of_row = blocks_of(offsets, row);
            const int64_t start = n_queries * block / n_of_row, stop = n_queries * (block + 1) / n_of_row;
            const int64_t query = (first_only ? row : first_key) + start;
            const Scratch scratch{(kernels()->*kernel).scratch_size(n_keys, size)};
            if (!scratch.data) {
                has_memory = false;
                return;
            }
            (kernels()->*kernel)
                .attend({
                    .queries = queries.data + query * n_features + head,
                    .keys = keys.data + first_key * n_features + head,
                    .values = values.data + first_key * n_features + head,
                    .query_stride = n_features,
                    .key_stride = n_features,
                    .value_stride = n_features,
                    .n_queries = stop - start,
                    .n_keys = n_keys,
                    .head_size = size,
                    .scale = 1.0f / __builtin_sqrtf((float)size),
                    .y = y.data + query * n_features + head,
                    .y_stride = n_features,
                    .scratch = scratch.data,
                });
        });
        run.check(has_memory, "there is not enough memory for attention", onnxruntime::FAIL);
    }

    static int64_t longest(const Tensor<const int32_t>& offsets) {
        int64_t most = 0;
        for (int64_t row = 1; row < offsets.n_rows; row++) {
            const int64_t n = offsets.data[row] - offsets.data[row - 1];
            most = n > most ? n : most;
        }
        return most;
    }

    // How many tasks a row's queries of one head make: none without tokens.
    int64_t blocks_of(const Tensor<const int32_t>& offsets, int64_t row) const {
        const int64_t n = offsets.data[row + 1] - offsets.data[row];
        return first_only ? (n > 0) : (n + QUERIES_OF_TASK - 1) / QUERIES_OF_TASK;
    }

    int64_t n_heads;
    bool first_only;
};

// In integers of 16 bits.
struct Attention : Attending<&Kernels::attention> {
    static constexpr const char* NAME = "Attention";
    using Attending::Attending;
};

struct FloatAttention : Attending<&Kernels::float_attention> {
    static constexpr const char* NAME = "FloatAttention";
    using Attending::Attending;
};
