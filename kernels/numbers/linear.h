// The product of rounded activations with a panel of weights, back in float32, with bias and GELU.
#pragma once
#include "kernels.h"
#include "products.h"
#include "vector.h"

namespace {

// What the outputs of a panel have in common, in two parts of 16.
struct Columns {
    Ints corrections[2];  // what sums begin with, so that bytes count from their zero point
    Floats scales[2], bias[2];
    long n[2];  // how many of the part's columns are outputs: all if 16 or more, none if negative
};

INLINE Columns columns_of(const LinearTask& task) {
    Columns found = {};
    for (long part = 0; part < 2; part++) {
        const long start = part * LANES, left = task.n_outputs - start;
        found.n[part] = left;
        __builtin_memcpy(&found.corrections[part], task.sums + start, sizeof(Ints));
        found.corrections[part] *= BYTE_OFFSET - task.zero_point;
        found.scales[part] = load(task.scales + start);
        if (task.bias) found.bias[part] = load(task.bias + start, found.n[part]);
    }
    return found;
}

template <bool HAS_GELU>
INLINE Floats outputs_of(Ints sums, const Columns& columns, long part, Floats scale) {
    const Floats product = __builtin_convertvector(sums, Floats) * columns.scales[part];
    const Floats found = fma(product, scale, columns.bias[part]);
    return HAS_GELU ? gelu(found) : found;
}

template <bool HAS_GELU, int R>
INLINE void tile(const LinearTask& task, const Columns& columns, long start, long n_rows, long ahead) {
    if constexpr (R > 1)
        if (n_rows < R) return tile<HAS_GELU, R - 1>(task, columns, start, n_rows, ahead);
    const uint8_t* const rows = task.bytes + start * task.stride;
    const Sums<R> sums =
        products<add_quads, R, true>(columns.corrections, rows, task.stride, task.panel, task.n_quads, ahead);
#pragma unroll
    for (int row = 0; row < R; row++) {
        const Floats scale = all(task.token_scales[start + row]);
        float* y = task.y + (start + row) * task.y_stride;
        store(y, outputs_of<HAS_GELU>(sums.left[row], columns, 0, scale), columns.n[0]);
        store(y + LANES, outputs_of<HAS_GELU>(sums.right[row], columns, 1, scale), columns.n[1]);
    }
}

template <bool HAS_GELU>
INLINE void tiles(const LinearTask& task) {
    const Columns columns = columns_of(task);
    // Tiles of nearly equal height: a last one of a single row would take a quarter of the time of a full one.
    const long n_tiles = (task.n_tokens + ROWS - 1) / ROWS;
    for (long i = 0; i < n_tiles; i++) {
        const long start = task.n_tokens * i / n_tiles, stop = task.n_tokens * (i + 1) / n_tiles;
        const long ahead = i == 0 ? task.n_quads * 4 * PANEL : 0;
        for (long row = start; row < stop; row++) {
            __builtin_prefetch(task.y + row * task.y_stride, 1);
            __builtin_prefetch(task.y + row * task.y_stride + LANES, 1);
        }
        tile<HAS_GELU, ROWS>(task, columns, start, stop - start, ahead);
    }
}

void linear(const LinearTask& task) { task.has_gelu ? tiles<true>(task) : tiles<false>(task); }

}  // namespace
