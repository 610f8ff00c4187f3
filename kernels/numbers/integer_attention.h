// The numbers of attention in integers of 16 bits.
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
#include "attention.h"
#include "kernels.h"
#include "products.h"
#include "vector.h"

namespace {

typedef int16_t Shorts __attribute__((vector_size(32)));

// The offset may add one step to a share.
constexpr float LARGEST_SHARE = 32766, LARGEST_VALUE = 1023;
static_assert(LONGEST_ROW / LANES * 32767 < 1L << 31, "the sum of a row's shares fits 32 bits in each of its places");
// The inverse of a scale is a number then, and the product of two scales 0 or a number.
constexpr float SMALLEST_SCALE = 1e-30f;

// Return the nearest integers of numbers below 2^22, halves to even.
INLINE Ints nearest(Floats x) { return bits(x + ROUNDER) - __builtin_bit_cast(int32_t, ROUNDER); }

INLINE void store(int16_t* to, Ints values) {
    const Shorts narrow = __builtin_convertvector(values, Shorts);
    __builtin_memcpy(to, &narrow, sizeof narrow);
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
    const Power two = power_of_two(x > LOWEST_POWER ? x : all(LOWEST_POWER));
    Floats power = all(LARGEST_SHARE * 0.009666374f);
    power = fma(power, two.part, all(LARGEST_SHARE * 0.05550411f));
    power = fma(power, two.part, all(LARGEST_SHARE * 0.24022651f));
    power = fma(power, two.part, all(LARGEST_SHARE * 0.69314718f));
    power = fma(power, two.part, all(LARGEST_SHARE));
    return fma(power, two.whole, offset);
}

struct Integers {
    using Sum = Ints;
    typedef int16_t Number;
    static constexpr long PER_STEP = 2, KEYS_OF_BLOCK = 64;
    static_assert(KEYS_OF_BLOCK * 32767 * 1023 < 1L << 31, "a block's sum fits 32 bits");

    float limit;

    explicit Integers(long head_size) : limit(32767.0f / __builtin_sqrtf((float)head_size)) {}

    static __attribute__((always_inline)) Ints add(Ints sums, Ints x, Ints y) { return add_pairs(sums, x, y); }

    // Round a key or a query to integers of at most `limit`, with zeros up to a multiple of 16. Return the scale.
    __attribute__((always_inline)) float take(const float* x, long n, int16_t* y) const {
        Ints most = {};
        for (long i = 0; i < n; i += LANES) most = larger(most, magnitudes(load(x + i, n - i)));
        float scale = __builtin_bit_cast(float, largest(most)) / limit;
        scale = scale <= SMALLEST_SCALE ? SMALLEST_SCALE : scale;  // asked this way, NaN is not replaced
        const Floats inverse = all(1.0f / scale);
        for (long i = 0; i < n; i += LANES) store(y + i, nearest(load(x + i, n - i) * inverse));
        return scale;
    }

    // Round the values, and put pairs of keys into panels of 32 features.
    static __attribute__((always_inline)) void pack_values(const AttentionTask& task, const Layout& at) {
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
                store(at.value_panel(task, c) + j / 2 * PANEL + c % PANEL, floats_of((even & 0xffff) | odd << 16));
            }
    }

    // Return the scores of 16 keys with these scales, but for the query's scale.
    static __attribute__((always_inline)) Floats scores_of(Ints sums, const float* scales) {
        return __builtin_convertvector(sums, Floats) * load(scales);
    }

    // Turn a query's scores into shares, for `factor` that makes them powers of two. Return the sum of the shares.
    static __attribute__((always_inline)) float compute_shares(const float* scores, long n_places, float highest,
                                                               float factor, int16_t* shares) {
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

    // Return 16 features of an output, from the sums of their values with these scales and the inverse of all shares.
    static __attribute__((always_inline)) Floats output_of(Floats sums, const float* scales, float inverse) {
        return sums * (load(scales) * inverse);
    }
};

}  // namespace
