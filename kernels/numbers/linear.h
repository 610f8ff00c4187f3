// The product of activations with a panel of weights, with bias and GELU: in integers, back in float32, or in float32.
#pragma once
#include "kernels.h"
#include "products.h"
#include "vector.h"

namespace {

// What the outputs of a panel have in common, in two parts of 16.
template <class Vector>
struct Columns {
    Vector starts[2];  // what sums begin with
    Floats scales[2], bias[2];
    long n[2];  // how many of the part's columns are outputs: all if 16 or more, none if negative
};

INLINE Columns<Ints> columns_of(const LinearTask& task) {
    Columns<Ints> found = {};
    for (long part = 0; part < 2; part++) {
        const long start = part * LANES, left = task.n_outputs - start;
        found.n[part] = left;
        // So bytes count from their zero point.
        __builtin_memcpy(&found.starts[part], task.sums + start, sizeof(Ints));
        found.starts[part] *= BYTE_OFFSET - task.zero_point;
        found.scales[part] = load(task.scales + start);
        if (task.bias) found.bias[part] = load(task.bias + start, left);
    }
    return found;
}

INLINE Columns<Floats> columns_of(const FloatLinearTask& task) {
    Columns<Floats> found = {};
    for (long part = 0; part < 2; part++) {
        const long start = part * LANES, left = task.n_outputs - start;
        found.n[part] = left;
        if (task.bias) found.starts[part] = load(task.bias + start, left);
    }
    return found;
}

template <int R>
INLINE Sums<Ints, R> sums_of(const LinearTask& task, const Columns<Ints>& columns, long start, long ahead) {
    const uint8_t* const rows = task.x + start * task.stride;
    return products<Ints, add_quads, R, true>(columns.starts, rows, task.stride, task.panel, task.n_steps, ahead);
}

template <int R>
INLINE Sums<Floats, R> sums_of(const FloatLinearTask& task, const Columns<Floats>& columns, long start, long ahead) {
    const float* const rows = task.x + start * task.stride;
    const long stride = task.stride * static_cast<long>(sizeof(float));
    constexpr long lag = R > 8 ? 32 : 0;  // two lines of the cache: the next one is fetched while a row is in the first
    return products<Floats, add_singles, R, true, lag>(columns.starts, rows, stride, task.panel, task.n_steps, ahead);
}

INLINE Floats output_of(const LinearTask& task, const Columns<Ints>& columns, Ints sums, long part, long token) {
    const Floats product = __builtin_convertvector(sums, Floats) * columns.scales[part];
    return fma(product, all(task.token_scales[token]), columns.bias[part]);
}

INLINE Floats output_of(const FloatLinearTask&, const Columns<Floats>&, Floats sums, long, long) { return sums; }

template <bool HAS_GELU, int R, class Task, class Vector>
INLINE void tile(const Task& task, const Columns<Vector>& columns, long start, long n_rows, long ahead) {
    if constexpr (R > 1)
        if (n_rows < R) return tile<HAS_GELU, R - 1>(task, columns, start, n_rows, ahead);
    const Sums<Vector, R> sums = sums_of<R>(task, columns, start, ahead);
#pragma unroll
    for (int row = 0; row < R; row++) {
        const Floats left = output_of(task, columns, sums.left[row], 0, start + row);
        const Floats right = output_of(task, columns, sums.right[row], 1, start + row);
        float* const y = task.y + (start + row) * task.y_stride;
        store(y, HAS_GELU ? gelu(left) : left, columns.n[0]);
        store(y + LANES, HAS_GELU ? gelu(right) : right, columns.n[1]);
    }
}

template <bool HAS_GELU, class Task>
INLINE void tiles(const Task& task) {
    const auto columns = columns_of(task);
    // Tiles of nearly equal height: a last one of a single row would take a quarter of the time of a full one.
    const long n_tiles = (task.n_tokens + ROWS - 1) / ROWS;
    for (long i = 0; i < n_tiles; i++) {
        const long start = task.n_tokens * i / n_tiles, stop = task.n_tokens * (i + 1) / n_tiles;
        // The last tile does not need again what the next panel takes the place of in the cache.
        const long ahead = i == n_tiles - 1 ? task.n_steps * BYTES_OF_STEP : 0;
        for (long row = start; row < stop; row++) {
            __builtin_prefetch(task.y + row * task.y_stride, 1);
            __builtin_prefetch(task.y + row * task.y_stride + LANES, 1);
        }
        tile<HAS_GELU, ROWS>(task, columns, start, stop - start, ahead);
    }
}

template <class Task>
void linear(const Task& task) {
    task.has_gelu ? tiles<true>(task) : tiles<false>(task);
}

}  // namespace
