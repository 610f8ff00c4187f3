// The place of each token in its row.
#pragma once
#include "../operator.h"

struct Places {
    static constexpr const char* NAME = "Places";
    // offsets (n_rows + 1,)
    static constexpr onnxruntime::ElementType INPUTS[] = {onnxruntime::INT32};
    static constexpr size_t N_REQUIRED = 1;
    // (n_tokens,)
    static constexpr onnxruntime::ElementType OUTPUTS[] = {onnxruntime::INT32};

    explicit Places(Attributes&) {}

    void compute(Run& run) const {
        const auto offsets = run.input<int32_t>(0);
        if (!run.check(is_ascending(offsets), "row_offsets do not ascend from 0")) return;
        const int64_t n_rows = offsets.n_rows - 1;
        const auto places = run.output<int32_t>(0, offsets.data[n_rows]);
        if (!places.data) return;
        for (int64_t row = 0; row < n_rows; row++)
            for (int32_t token = offsets.data[row]; token < offsets.data[row + 1]; token++)
                places.data[token] = token - offsets.data[row];
    }

    static bool is_ascending(const Tensor<const int32_t>& offsets) {
        if (!offsets.data || offsets.n_rows < 1 || offsets.n_columns != 1 || offsets.data[0] != 0) return false;
        for (int64_t row = 1; row < offsets.n_rows; row++)
            if (offsets.data[row] < offsets.data[row - 1]) return false;
        return true;
    }
};
