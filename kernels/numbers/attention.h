// Attention from some tokens to all tokens of their row, in one head.
//
// Keys and values are copied into panels. Then some queries at a time have their scores computed, which become shares,
// by which the values are summed. `Numbers` says what the products are made of:
//   Sum            a vector of sums of products
//   Number         what is multiplied
//   PER_STEP       how many numbers take the four bytes of a step
//   KEYS_OF_BLOCK  how many values a sum may have before it is added to others
//   add            adds a step to a sum
//   take           copies a key or a query as numbers, and returns its scale
//   and the copy of the values, scores of sums, shares of scores and outputs of sums
#pragma once
#include "kernels.h"
#include "products.h"
#include "vector.h"

namespace {

constexpr float LOWEST = -__builtin_inff();
static_assert(LARGEST_HEAD % PANEL == 0, "buffers for the largest head have room for whole panels");

constexpr long rounded_up(long n, long step) { return (n + step - 1) / step * step; }

// Where a task's numbers are in its scratch, counted in floats.
struct Layout {
    long n_keys, head_size, per_step;

    long n_steps = (head_size + per_step - 1) / per_step;  // of features
    long n_places = rounded_up(n_keys, PANEL);             // of keys
    long n_columns = rounded_up(head_size, PANEL);         // of values
    long width = rounded_up(head_size, LANES);             // from one query to the next
    // From one query's scores to the next. An odd number of lines, so that queries have different places in the cache.
    long stride = n_places + LANES;

    long keys = 0;  // (n_places / 32, n_steps, 32) steps of features
    long values = keys + n_places * n_steps;  // (n_columns / 32, n_places / per_step, 32) of keys
    long queries = values + n_columns * (n_places / per_step);  // (ROWS, width) numbers
    long key_scales = queries + ROWS * width / per_step;  // (n_places,)
    long value_scales = key_scales + n_places;  // (n_columns,)
    long scores = value_scales + n_columns;  // (ROWS, stride)
    // (ROWS, stride) numbers. Those that are floats take the place of their scores.
    long shares = per_step > 1 ? scores + ROWS * stride : scores;
    long n_floats = shares + ROWS * stride / per_step;

    float* key_panel(const AttentionTask& task, long key) const {
        return task.scratch + keys + key / PANEL * PANEL * n_steps;
    }

    float* value_panel(const AttentionTask& task, long column) const {
        return task.scratch + values + column / PANEL * PANEL * (n_places / per_step);
    }
};

template <class Numbers>
Layout layout_of(long n_keys, long head_size) {
    return {.n_keys = n_keys, .head_size = head_size, .per_step = Numbers::PER_STEP};
}

template <class Numbers>
long scratch_size(long n_keys, long head_size) {
    return layout_of<Numbers>(n_keys, head_size).n_floats;
}

// Put the keys into panels of 32. Return 0, or NaN if a key is not finite.
template <class Numbers>
INLINE float pack_keys(const Numbers& numbers, const AttentionTask& task, const Layout& at) {
    float* const scales = task.scratch + at.key_scales;
    alignas(64) typename Numbers::Number key[LARGEST_HEAD] = {};
    float poison = 0;
    for (long j = 0; j < at.n_places; j++) {
        if (j < at.n_keys) {
            scales[j] = numbers.take(task.keys + j * task.key_stride, at.head_size, key);
        } else {
            scales[j] = 0;
            __builtin_memset(key, 0, sizeof key);
        }
        poison += scales[j] * 0.0f;
        float* const column = at.key_panel(task, j) + j % PANEL;
        for (long step = 0; step < at.n_steps; step++)
            __builtin_memcpy(column + step * PANEL, key + step * at.per_step, 4);
    }
    return poison;
}

// Compute the scores of R queries but for the queries' scales, and the largest of each, spread over 16 places.
template <class Numbers, int R>
INLINE void compute_scores(const AttentionTask& task, const Layout& at, Floats (&most)[R]) {
    using Sum = typename Numbers::Sum;
#pragma unroll
    for (int row = 0; row < R; row++) most[row] = all(LOWEST);
    for (long j = 0; j < at.n_keys; j += PANEL) {
        const Sums<Sum, R> sums = products<Sum, Numbers::add, R, false>(
            {}, task.scratch + at.queries, at.width * 4 / at.per_step, at.key_panel(task, j), at.n_steps);
        const float* const scales = task.scratch + at.key_scales + j;
        const long n_left = at.n_keys - j;
#pragma unroll
        for (int row = 0; row < R; row++) {
            Floats left = Numbers::scores_of(sums.left[row], scales);
            Floats right = Numbers::scores_of(sums.right[row], scales + LANES);
            if (n_left < PANEL) {
                left = first(n_left) ? left : all(LOWEST);
                right = first(n_left - LANES) ? right : all(LOWEST);
            }
            float* const scores = task.scratch + at.scores + row * at.stride + j;
            store(scores, left);
            store(scores + LANES, right);
            const Floats higher = left > right ? left : right;
            most[row] = higher > most[row] ? higher : most[row];
        }
    }
}

// Sum the values of R queries by their shares, and divide the sums.
template <class Numbers, int R>
INLINE void compute_outputs(const AttentionTask& task, const Layout& at, long start, const float (&inverses)[R]) {
    using Sum = typename Numbers::Sum;
    for (long c = 0; c < at.n_columns; c += PANEL) {
        // These are in memory. Where Clang may choose, it keeps them in registers, and moves the inner loop's sums.
        Sums<Floats, R> totals;
        Sums<Floats, R>* total = &totals;
        __asm__("" : "+r"(total) : : "memory");
#pragma unroll
        for (int row = 0; row < R; row++) total->left[row] = total->right[row] = Floats{};
        const float* const panel = at.value_panel(task, c);
        for (long j = 0; j < at.n_keys; j += Numbers::KEYS_OF_BLOCK) {
            const long n_left = at.n_keys - j, n = n_left < Numbers::KEYS_OF_BLOCK ? n_left : Numbers::KEYS_OF_BLOCK;
            const float* const shares = task.scratch + at.shares + j / at.per_step;
            const Sums<Sum, R> sums = products<Sum, Numbers::add, R, false>({}, shares, at.stride * 4 / at.per_step,
                                                                            panel + j / at.per_step * PANEL,
                                                                            (n + at.per_step - 1) / at.per_step);
#pragma unroll
            for (int row = 0; row < R; row++) {
                total->left[row] += __builtin_convertvector(sums.left[row], Floats);
                total->right[row] += __builtin_convertvector(sums.right[row], Floats);
            }
        }
        const float* const scales = task.scratch + at.value_scales + c;
#pragma unroll
        for (int row = 0; row < R; row++) {
            float* const y = task.y + (start + row) * task.y_stride + c;
            store(y, Numbers::output_of(total->left[row], scales, inverses[row]), at.head_size - c);
            store(y + LANES, Numbers::output_of(total->right[row], scales + LANES, inverses[row]),
                  at.head_size - c - LANES);
        }
    }
}

// Attend from the n_queries queries that begin at `start`, R at most.
template <class Numbers, int R>
INLINE void attend_tile(const Numbers& numbers, const AttentionTask& task, const Layout& at, float poison, long start,
                        long n_queries) {
    using Number = typename Numbers::Number;
    if constexpr (R > 1)
        if (n_queries < R) return attend_tile<Numbers, R - 1>(numbers, task, at, poison, start, n_queries);
    constexpr float LOG2_E = 1.44269504f;
    float factors[R], inverses[R];
    for (int row = 0; row < R; row++) {
        Number* const query = reinterpret_cast<Number*>(task.scratch + at.queries) + row * at.width;
        const float* const from = task.queries + (start + row) * task.query_stride;
        factors[row] = numbers.take(from, at.head_size, query) * task.scale * LOG2_E;
    }
    Floats most[R];
    compute_scores<Numbers, R>(task, at, most);
    for (int row = 0; row < R; row++) {
        const float* const scores = task.scratch + at.scores + row * at.stride;
        Number* const shares = reinterpret_cast<Number*>(task.scratch + at.shares) + row * at.stride;
        const float total = Numbers::compute_shares(scores, at.n_places, largest(most[row]), factors[row], shares);
        inverses[row] = 1.0f / (total + factors[row] * 0.0f + poison);
    }
    compute_outputs<Numbers, R>(task, at, start, inverses);
}

template <class Numbers>
void attend(const AttentionTask& task) {
    const Layout at = layout_of<Numbers>(task.n_keys, task.head_size);
    const Numbers numbers(task.head_size);
    const float poison = pack_keys(numbers, task, at);
    Numbers::pack_values(task, at);
    // Tiles of nearly equal height, as in linear layers.
    const long n_tiles = (task.n_queries + ROWS - 1) / ROWS;
    for (long tile = 0; tile < n_tiles; tile++) {
        const long start = task.n_queries * tile / n_tiles, stop = task.n_queries * (tile + 1) / n_tiles;
        attend_tile<Numbers, ROWS>(numbers, task, at, poison, start, stop - start);
    }
}

}  // namespace
