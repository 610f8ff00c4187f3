// Attention from some tokens to all tokens of their row, in one head, in integers of 16 bits.
//
// A processor adds 32 products of 16-bit integers where it adds 16 of floats. It adds them exactly, so their order
// does not matter. Each sum of products has 32 bits, and no input can make it overflow:
//
// Scores are queries times keys. Each query and each key is rounded to integers by a scale of its own, to at most
//     limit = 32767 / sqrt(head_size),
// which is 4,096 for a head of 64: 13 bits with the sign. Rounding adds 1/2 at most. So a score is at most
//     (limit + 1/2)^2 * head_size < 2^30 + 2^15 * sqrt(head_size) + head_size / 4 < 2^31.
//
// Shares are 2^(score - the highest score), in steps of 1/32766: 15 bits. Before a share is rounded it gets an
// offset between -1/2 and 1/2, which depends on the key's place in its row alone. Of many keys with a share of 0.4
// steps, four in ten then get one step. Without offsets all of them would get none: in a row of 8,192 tokens of
// which one had nine tenths of the sum, outputs were off by 3.4 %, and are now by 0.2 %. It takes no instruction
// more. Shares are rounded before they are summed, and outputs are divided by the sum of the rounded ones. So a
// value that all tokens have comes back as it is.
//
// Values are rounded to integers of at most 1023, by one scale for all tokens of a feature. 64 keys add up to at most
// 64 * 32767 * 1023 < 2^31. Such blocks are added in float32, in order.
//
// NaN and infinity reach what depends on them, although integers have neither. The scale of a key, of a query or of
// a feature's values is then NaN or infinity. A key's makes all outputs of the row's head NaN, a query's makes
// those of the query NaN, and a feature's makes its own NaN or infinite. Scales have a floor, so that zeros are
// divided by a number.
#pragma once
#include "kernels.h"
#include "products.h"
#include "vector.h"

namespace {

typedef int16_t Shorts __attribute__((vector_size(32)));

// The offset may add one step to a share.
constexpr float LARGEST_SHARE = 32766, LARGEST_VALUE = 1023;
constexpr long KEYS_OF_BLOCK = 64;
static_assert(KEYS_OF_BLOCK * 32767 * 1023 < 1L << 31, "a block's sum fits 32 bits");
static_assert(LONGEST_ROW / LANES * 32767 < 1L << 31, "the sum of a row's shares fits 32 bits in each of its places");
static_assert(LARGEST_HEAD % PANEL == 0, "buffers for the largest head have room for whole panels");
// The inverse of a scale is a number then, and the product of two scales 0 or a number.
constexpr float SMALLEST_SCALE = 1e-30f;
constexpr float LOWEST = -__builtin_inff();

constexpr long rounded_up(long n, long step) { return (n + step - 1) / step * step; }

// Where a task's numbers are in its scratch, counted in floats.
struct Layout {
    long n_keys, head_size;

    long n_pairs = (head_size + 1) / 2;             // of features
    long n_places = rounded_up(n_keys, PANEL);      // of keys
    long n_columns = rounded_up(head_size, PANEL);  // of values
    long width = rounded_up(head_size, LANES);      // from one query to the next
    // From one query's scores to the next. An odd number of lines, so that queries have different places in the cache.
    long stride = n_places + LANES;

    long keys = 0;  // (n_places / 32, n_pairs, 32) pairs of features
    long values = keys + n_places * n_pairs;  // (n_columns / 32, n_places / 2, 32) pairs of keys
    long queries = values + n_columns * (n_places / 2);  // (ROWS, width) of 16 bits
    long key_scales = queries + ROWS * width / 2;  // (n_places,)
    long value_scales = key_scales + n_places;  // (n_columns,)
    long scores = value_scales + n_columns;  // (ROWS, stride)
    long shares = scores + ROWS * stride;  // (ROWS, stride) of 16 bits
    long n_floats = shares + ROWS * stride / 2;
};

long scratch_size(long n_keys, long head_size) { return Layout{.n_keys = n_keys, .head_size = head_size}.n_floats; }

// Return the nearest integers of numbers below 2^22, halves to even.
INLINE Ints nearest(Floats x) { return bits(x + ROUNDER) - __builtin_bit_cast(int32_t, ROUNDER); }

INLINE void store(int16_t* to, Ints values) {
    const Shorts narrow = __builtin_convertvector(values, Shorts);
    __builtin_memcpy(to, &narrow, sizeof narrow);
}

// Round a key or a query to integers of at most `limit`, with zeros up to a multiple of 16. Return the scale.
INLINE float round_vector(const float* x, long n, float limit, int16_t* y) {
    Ints most = {};
    for (long i = 0; i < n; i += LANES) most = larger(most, magnitudes(load(x + i, n - i)));
    float scale = __builtin_bit_cast(float, largest(most)) / limit;
    scale = scale <= SMALLEST_SCALE ? SMALLEST_SCALE : scale;  // asked this way, NaN is not replaced
    const Floats inverse = all(1.0f / scale);
    for (long i = 0; i < n; i += LANES) store(y + i, nearest(load(x + i, n - i) * inverse));
    return scale;
}

// Round the keys, and put pairs of their features into panels of 32 keys. Return 0, or NaN if a key is not finite.
INLINE float pack_keys(const AttentionTask& task, const Layout& at, float limit) {
    float* const scales = task.scratch + at.key_scales;
    alignas(64) int16_t key[LARGEST_HEAD] = {};
    float poison = 0;
    for (long j = 0; j < at.n_places; j++) {
        if (j < at.n_keys) {
            scales[j] = round_vector(task.keys + j * task.key_stride, at.head_size, limit, key);
        } else {
            scales[j] = 0;
            __builtin_memset(key, 0, sizeof key);
        }
        poison += scales[j] * 0.0f;
        float* const column = task.scratch + at.keys + j / PANEL * PANEL * at.n_pairs + j % PANEL;
        for (long pair = 0; pair < at.n_pairs; pair++) __builtin_memcpy(column + pair * PANEL, key + 2 * pair, 4);
    }
    return poison;
}

// Round the values, and put pairs of keys into panels of 32 features.
INLINE void pack_values(const AttentionTask& task, const Layout& at) {
    float* const scales = task.scratch + at.value_scales;
    alignas(64) float inverses[LARGEST_HEAD];
    for (long c = 0; c < at.n_columns; c += LANES) store(scales + c, Floats{});
    for (long j = 0; j < at.n_keys; j++)
        for (long c = 0; c < at.n_columns; c += LANES) {
            const Ints here = magnitudes(load(task.values + j * task.value_stride + c, at.head_size - c));
            store(scales + c, floats_of(larger(bits(load(scales + c)), here)));
        }
    for (long c = 0; c < at.n_columns; c += LANES) {
        const Floats scale = load(scales + c) * (1.0f / LARGEST_VALUE);
        const Floats floored = scale <= SMALLEST_SCALE ? all(SMALLEST_SCALE) : scale;
        store(scales + c, floored);
        store(inverses + c, 1.0f / floored);
    }
    for (long j = 0; j < at.n_keys; j += 2)
        for (long c = 0; c < at.n_columns; c += LANES) {
            const float* const from = task.values + j * task.value_stride + c;
            const long left = at.head_size - c;
            const Floats inverse = load(inverses + c);
            const Ints even = nearest(load(from, left) * inverse);
            // A row of an odd number of keys ends with a pair of one.
            const Ints odd = j + 1 < at.n_keys ? nearest(load(from + task.value_stride, left) * inverse) : Ints{};
            float* const to = task.scratch + at.values + c / PANEL * PANEL * (at.n_places / 2) + c % PANEL;
            store(to + j / 2 * PANEL, floats_of((even & 0xffff) | odd << 16));
        }
}

// Compute the scores of R queries but for the queries' scales, and the largest of each, spread over 16 places.
template <int R>
INLINE void compute_scores(const AttentionTask& task, const Layout& at, Floats (&most)[R]) {
#pragma unroll
    for (int row = 0; row < R; row++) most[row] = all(LOWEST);
    for (long j = 0; j < at.n_keys; j += PANEL) {
        const float* const panel = task.scratch + at.keys + j * at.n_pairs;
        const Sums<R> sums =
            products<add_pairs, R, false>({}, task.scratch + at.queries, at.width * 2, panel, at.n_pairs);
        const float* const scales = task.scratch + at.key_scales + j;
        const long n_left = at.n_keys - j;
#pragma unroll
        for (int row = 0; row < R; row++) {
            Floats left = __builtin_convertvector(sums.left[row], Floats) * load(scales);
            Floats right = __builtin_convertvector(sums.right[row], Floats) * load(scales + LANES);
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

// What keys get before their shares are rounded, by their place in a panel. In each run of 2, 4, 8 or 16 places the
// offsets are spread evenly (the bits of the place, in reverse).
constexpr float OFFSETS[PANEL] = {
    -31 / 64.0f, 1 / 64.0f, -15 / 64.0f, 17 / 64.0f, -23 / 64.0f, 9 / 64.0f,  -7 / 64.0f, 25 / 64.0f,
    -27 / 64.0f, 5 / 64.0f, -11 / 64.0f, 21 / 64.0f, -19 / 64.0f, 13 / 64.0f, -3 / 64.0f, 29 / 64.0f,
    -29 / 64.0f, 3 / 64.0f, -13 / 64.0f, 19 / 64.0f, -21 / 64.0f, 11 / 64.0f, -5 / 64.0f, 27 / 64.0f,
    -25 / 64.0f, 7 / 64.0f, -9 / 64.0f,  23 / 64.0f, -17 / 64.0f, 15 / 64.0f, -1 / 64.0f, 31 / 64.0f,
};

// Return 32766 * 2^x for x <= 0, to 4e-6 of itself, plus the offset. Low numbers, -infinity and NaN give the offset.
INLINE Floats share_of(Floats x, Floats offset) {
    x = x > -126.0f ? x : all(-126.0f);
    // With the exponent's bias added, the low bits are those of the power of two.
    const Floats shifted = x + (ROUNDER + 127.0f);
    const Floats r = x - (shifted - (ROUNDER + 127.0f));
    Floats power = all(LARGEST_SHARE * 0.009666374f);
    power = fma(power, r, all(LARGEST_SHARE * 0.05550411f));
    power = fma(power, r, all(LARGEST_SHARE * 0.24022651f));
    power = fma(power, r, all(LARGEST_SHARE * 0.69314718f));
    power = fma(power, r, all(LARGEST_SHARE));
    return fma(power, floats_of(bits(shifted) << 23), offset);
}

// Turn a query's scores into shares, for `factor` that makes them powers of two. Return the sum of the shares.
INLINE float compute_shares(const float* scores, long n_places, float highest, float factor, int16_t* shares) {
    // The exponents must not be above 0, or the largest share would not fit 16 bits. The product is rounded, so the
    // next number above it is taken; what this changes in all shares alike, their sum takes out again.
    const float top = highest * factor;
    const Floats factors = all(factor), reach = all(-(top + __builtin_fabsf(top) * 0x1p-23f));
    const Floats left_offsets = load(OFFSETS), right_offsets = load(OFFSETS + LANES);
    Ints total = {};
    for (long j = 0; j < n_places; j += PANEL) {
        const Ints left = nearest(share_of(fma(load(scores + j), factors, reach), left_offsets));
        const Ints right = nearest(share_of(fma(load(scores + j + LANES), factors, reach), right_offsets));
        total += left + right;
        store(shares + j, left);
        store(shares + j + LANES, right);
    }
    return sum(__builtin_convertvector(total, Floats));
}

// Sum the values of R queries by their shares, and divide the sums.
template <int R>
INLINE void compute_outputs(const AttentionTask& task, const Layout& at, long start, const float (&inverses)[R]) {
    for (long c = 0; c < at.n_columns; c += PANEL) {
        Floats left[R], right[R];
#pragma unroll
        for (int row = 0; row < R; row++) left[row] = right[row] = Floats{};
        const float* const panel = task.scratch + at.values + c * (at.n_places / 2);
        for (long j = 0; j < at.n_keys; j += KEYS_OF_BLOCK) {
            const long n_left = at.n_keys - j, n_pairs = n_left < KEYS_OF_BLOCK ? (n_left + 1) / 2 : KEYS_OF_BLOCK / 2;
            const float* const shares = task.scratch + at.shares + j / 2;
            const Sums<R> sums =
                products<add_pairs, R, false>({}, shares, at.stride * 2, panel + j / 2 * PANEL, n_pairs);
#pragma unroll
            for (int row = 0; row < R; row++) {
                left[row] += __builtin_convertvector(sums.left[row], Floats);
                right[row] += __builtin_convertvector(sums.right[row], Floats);
            }
        }
        const float* const scales = task.scratch + at.value_scales + c;
#pragma unroll
        for (int row = 0; row < R; row++) {
            float* const y = task.y + (start + row) * task.y_stride + c;
            store(y, left[row] * (load(scales) * inverses[row]), at.head_size - c);
            store(y + LANES, right[row] * (load(scales + LANES) * inverses[row]), at.head_size - c - LANES);
        }
    }
}

// Attend from the n_queries queries that begin at `start`, R at most.
template <int R>
INLINE void attend_tile(const AttentionTask& task, const Layout& at, float limit, float poison, long start,
                        long n_queries) {
    if constexpr (R > 1)
        if (n_queries < R) return attend_tile<R - 1>(task, at, limit, poison, start, n_queries);
    constexpr float LOG2_E = 1.44269504f;
    float factors[R], inverses[R];
    for (int row = 0; row < R; row++) {
        int16_t* const query = reinterpret_cast<int16_t*>(task.scratch + at.queries) + row * at.width;
        const float* const from = task.queries + (start + row) * task.query_stride;
        factors[row] = round_vector(from, at.head_size, limit, query) * task.scale * LOG2_E;
    }
    Floats most[R];
    compute_scores<R>(task, at, most);
    for (int row = 0; row < R; row++) {
        const float* const scores = task.scratch + at.scores + row * at.stride;
        int16_t* const shares = reinterpret_cast<int16_t*>(task.scratch + at.shares) + row * at.stride;
        const float total = compute_shares(scores, at.n_places, largest(most[row]), factors[row], shares);
        inverses[row] = 1.0f / (total + factors[row] * 0.0f + poison);
    }
    compute_outputs<R>(task, at, start, inverses);
}

void attend(const AttentionTask& task) {
    const Layout at{.n_keys = task.n_keys, .head_size = task.head_size};
    const float limit = 32767.0f / __builtin_sqrtf((float)task.head_size);
    const float poison = pack_keys(task, at, limit);
    pack_values(task, at);
    // Tiles of nearly equal height, as in linear layers.
    const long n_tiles = (task.n_queries + ROWS - 1) / ROWS;
    for (long tile = 0; tile < n_tiles; tile++) {
        const long start = task.n_queries * tile / n_tiles, stop = task.n_queries * (tile + 1) / n_tiles;
        attend_tile<ROWS>(task, at, limit, poison, start, stop - start);
    }
}

}  // namespace
