// Attention from some tokens to all tokens of their row, in one head, in integers of 16 bits.
#pragma once
#include "kernels.h"
#include "vector.h"

namespace {

typedef int16_t Shorts __attribute__((vector_size(32)));
constexpr long KEYS_OF_BLOCK = 64;
constexpr float LARGEST_SHARE = 32767.0f, LARGEST_VALUE = 1023.0f;

INLINE long panels(long n) { return (n + PANEL - 1) / PANEL; }
INLINE long pairs(long n) { return (n + 1) / 2; }

// 32767 * 2^x for x <= 0, to 4e-6 of it
INLINE Floats share_of(Floats x) {
    x = x > -126.0f ? x : all(-126.0f);
    const Floats shifted = x + (ROUNDER + 127.0f);
    const Floats r = x - (shifted - (ROUNDER + 127.0f));
    Floats p = all(LARGEST_SHARE * 0.009666374f);
    p = fma(p, r, all(LARGEST_SHARE * 0.05550411f));
    p = fma(p, r, all(LARGEST_SHARE * 0.24022651f));
    p = fma(p, r, all(LARGEST_SHARE * 0.69314718f));
    p = fma(p, r, all(LARGEST_SHARE));
    return p * floats_of(bits(shifted) << 23);
}

INLINE Ints nearest(Floats x) { return bits(x + ROUNDER) - __builtin_bit_cast(int32_t, ROUNDER); }

INLINE float scale_of(Ints most, float limit) {
    const float scale = __builtin_bit_cast(float, largest(most)) / limit;
    return scale <= 1e-30f ? 1e-30f : scale;
}

INLINE float to_shorts(const float* x, long size, float limit, int16_t* y) {
    Ints most = {};
    for (long i = 0; i < size; i += LANES) most = larger(most, magnitudes(load(x + i, size - i)));
    const float scale = scale_of(most, limit);
    const Floats inverse = all(1.0f / scale);
    for (long i = 0; i < size; i += LANES) {
        const Shorts found = __builtin_convertvector(nearest(load(x + i, size - i) * inverse), Shorts);
        __builtin_memcpy(y + i, &found, sizeof found);
    }
    return scale;
}

struct Sizes {
    long n_places, n_features, width, stride;
    Sizes(long n, long size) : n_places((n + KEYS_OF_BLOCK - 1) / KEYS_OF_BLOCK * KEYS_OF_BLOCK), n_features(panels(size) * PANEL), width((size + LANES - 1) / LANES * LANES), stride(n_places + LANES) {}
};

long scratch_size(long n_keys, long head_size) {
    const Sizes s{n_keys, head_size};
    return s.n_places * s.width / 2 + s.n_places + s.n_features * s.n_places / 2 + 2 * s.n_features + ROWS * (s.width / 2 + s.stride + s.stride / 2 + 2 * s.n_features) + 16 * LANES;
}

template <int R>
INLINE void pair_sums(const int32_t* x, long stride, const int32_t* panel, long n, Ints (&left)[R], Ints (&right)[R]) {
#pragma unroll
    for (int row = 0; row < R; row++) left[row] = right[row] = Ints{};
    for (long i = 0; i < n; i++) {
        Ints a, b;
        __builtin_memcpy(&a, panel + i * PANEL, 64);
        __builtin_memcpy(&b, panel + i * PANEL + LANES, 64);
#pragma unroll
        for (int row = 0; row < R; row++) {
            const Ints two = Ints{} + x[row * stride + i];
            left[row] = add_pairs(left[row], two, a);
            right[row] = add_pairs(right[row], two, b);
        }
    }
}

struct Head {
    const int32_t *keys, *values;
    const float *key_scales, *value_scales;
    long n_keys, n_features, n_places, n_pairs;
    float poison;
};
struct Tile {
    int32_t* queries; long width;
    float* scores; long stride;
    int16_t* shares;
    float* outputs;
    float factors[ROWS];
};

template <int R>
INLINE void attend_tile(const AttentionTask& task, const Head& head, const Tile& t, long start, long n_rows) {
    if constexpr (R > 1)
        if (n_rows < R) return attend_tile<R - 1>(task, head, t, start, n_rows);
    const long n = head.n_keys;
    Floats most[R];
#pragma unroll
    for (int row = 0; row < R; row++) most[row] = all(-__builtin_inff());
    for (long j = 0; j < n; j += PANEL) {
        Ints left[R], right[R];
        pair_sums<R>(t.queries, t.width, head.keys + j * head.n_pairs, head.n_pairs, left, right);
        const Floats a = load(head.key_scales + j), b = load(head.key_scales + j + LANES);
        if (j + PANEL <= n) {
#pragma unroll
            for (int row = 0; row < R; row++) {
                const Floats x = __builtin_convertvector(left[row], Floats) * a, y = __builtin_convertvector(right[row], Floats) * b;
                float* to = t.scores + row * t.stride + j;
                store(to, x);
                store(to + LANES, y);
                const Floats both = x > y ? x : y;
                most[row] = both > most[row] ? both : most[row];
            }
        } else {
            const Ints in_left = first(n - j), in_right = first(n - j - LANES);
            const Floats lowest = all(-__builtin_inff());
#pragma unroll
            for (int row = 0; row < R; row++) {
                Floats x = __builtin_convertvector(left[row], Floats) * a, y = __builtin_convertvector(right[row], Floats) * b;
                x = in_left ? x : lowest, y = in_right ? y : lowest;
                float* to = t.scores + row * t.stride + j;
                store(to, x);
                store(to + LANES, y);
                const Floats both = x > y ? x : y;
                most[row] = both > most[row] ? both : most[row];
            }
        }
    }
    float inverses[R];
    for (int row = 0; row < R; row++) {
        const float by = t.factors[row];
        const Floats factor = all(by), reach = all(-largest(most[row]) * by);
        const float* x = t.scores + row * t.stride;
        int16_t* y = t.shares + row * t.stride;
        Ints total = {};
        for (long j = 0; j < panels(n) * PANEL; j += PANEL) {
            const Ints a = nearest(share_of(fma(load(x + j), factor, reach))), b = nearest(share_of(fma(load(x + j + LANES), factor, reach)));
            total += a + b;
            const Shorts c = __builtin_convertvector(a, Shorts), d = __builtin_convertvector(b, Shorts);
            __builtin_memcpy(y + j, &c, sizeof c);
            __builtin_memcpy(y + j + LANES, &d, sizeof d);
        }
        inverses[row] = 1.0f / (sum(__builtin_convertvector(total, Floats)) + by * 0.0f + head.poison);
    }
    for (long d = 0; d < head.n_features; d += PANEL) {
        Floats lower[R], upper[R];
#pragma unroll
        for (int row = 0; row < R; row++) lower[row] = upper[row] = Floats{};
        const int32_t* values = head.values + d * (head.n_places / 2);
        for (long block = 0; block < n; block += KEYS_OF_BLOCK) {
            const long n_here = pairs(n - block < KEYS_OF_BLOCK ? n - block : KEYS_OF_BLOCK);
            Ints left[R], right[R];
            pair_sums<R>((const int32_t*)(t.shares + block), t.stride / 2, values + block / 2 * PANEL, n_here, left, right);
#pragma unroll
            for (int row = 0; row < R; row++) {
                lower[row] += __builtin_convertvector(left[row], Floats);
                upper[row] += __builtin_convertvector(right[row], Floats);
            }
        }
        const Floats a = load(head.value_scales + d), b = load(head.value_scales + d + LANES);
        const long left = task.head_size - d;
#pragma unroll
        for (int row = 0; row < R; row++) {
            float* y = task.y + (start + row) * task.y_stride + d;
            store(y, lower[row] * (a * inverses[row]), left);
            if (left > LANES) store(y + LANES, upper[row] * (b * inverses[row]), left - LANES);
        }
    }
}

void attend(const AttentionTask& task) {
    const long n = task.n_keys, size = task.head_size;
    const Sizes s{n, size};
    int32_t* keys = (int32_t*)task.scratch;              // (panels, width / 2, 32) pairs of features
    int32_t* values = keys + s.n_places * s.width / 2;   // (panels, n_places / 2, 32) pairs of keys
    int32_t* queries = values + s.n_features * s.n_places / 2;  // (ROWS, width / 2)
    float* key_scales = (float*)(queries + ROWS * s.width / 2);
    float* value_scales = key_scales + s.n_places;
    float* scores = value_scales + s.n_features;     // (ROWS, stride)
    int16_t* shares = (int16_t*)(scores + ROWS * s.stride);  // (ROWS, stride)
    const float limit = 65535.0f / __builtin_sqrtf(2.0f * (float)size) * 0.7071f;  // limit^2 * size < 2^31

    const long n_used = pairs(size);
    alignas(64) int16_t one[512];
    Floats poison = {};
    for (long j = 0; j < s.n_places; j++) {
        int32_t* panel = keys + j / PANEL * PANEL * n_used + j % PANEL;
        if (j >= n) {
            for (long d = 0; d < n_used; d++) panel[d * PANEL] = 0;
            key_scales[j] = 0;
            continue;
        }
        key_scales[j] = to_shorts(task.keys + j * task.key_stride, size, limit, one);
        for (long d = 0; d < n_used; d++) {
            int32_t pair;
            __builtin_memcpy(&pair, one + 2 * d, 4);
            panel[d * PANEL] = pair;
        }
    }
    for (long j = 0; j < s.n_places; j += LANES) poison += load(key_scales + j) * 0.0f;
    for (long d = 0; d < s.n_features; d += 4 * LANES) {
        Ints most[4] = {};
        Floats inverses[4];
        const long n_parts = s.n_features - d < 4 * LANES ? 2 : 4;
        for (long j = 0; j < n; j++)
            for (long part = 0; part < n_parts; part++) {
                const long at = d + part * LANES;
                if (at < size) most[part] = larger(most[part], magnitudes(load(task.values + j * task.value_stride + at, size - at)));
            }
        for (long part = 0; part < n_parts; part++) {
            Floats scale = floats_of(most[part]) * (1.0f / LARGEST_VALUE);
            scale = scale <= 1e-30f ? all(1e-30f) : scale;
            store(value_scales + d + part * LANES, scale);
            inverses[part] = 1.0f / scale;
        }
        for (long j = 0; j < n; j += 2)
            for (long part = 0; part < n_parts; part++) {
                const long at = d + part * LANES;
                Ints even = {}, odd = {};
                if (at < size) {
                    even = nearest(load(task.values + j * task.value_stride + at, size - at) * inverses[part]);
                    if (j + 1 < n) odd = nearest(load(task.values + (j + 1) * task.value_stride + at, size - at) * inverses[part]);
                }
                store((float*)(values + at / PANEL * PANEL * (s.n_places / 2) + at % PANEL + j / 2 * PANEL), floats_of((even & 0xffff) | (odd << 16)));
            }
    }
    const Head head{keys, values, key_scales, value_scales, n, s.n_features, s.n_places, n_used, sum(poison)};
    Tile t{queries, s.width / 2, scores, s.stride, shares, nullptr, {}};
    const long n_tiles = (task.n_queries + ROWS - 1) / ROWS;
    for (long i = 0; i < n_tiles; i++) {
        const long start = task.n_queries * i / n_tiles, n_rows = task.n_queries * (i + 1) / n_tiles - start;
        for (long row = 0; row < n_rows; row++)
            t.factors[row] = to_shorts(task.queries + (start + row) * task.query_stride, size, limit, (int16_t*)(queries + row * s.width / 2)) * task.scale * 1.44269504f;
        attend_tile<ROWS>(task, head, t, start, n_rows);
    }
}

}  // namespace
