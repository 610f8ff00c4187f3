// The numbers of attention in float32.
//
// Each sum of products has one order: of features in a score, of keys in an output. A key's share is 2^x to 1e-7 of
// itself, and x is rounded once.
//
// NaN and infinity reach what depends on them as in integers of 16 bits. A key that is not finite makes all outputs of
// the row's head NaN, also where its score would be -infinity.
#pragma once
#include "attention.h"
#include "kernels.h"
#include "products.h"
#include "vector.h"

namespace {

// Return 2^x for x <= 0. Low numbers and -infinity give 2^-126, which no sum of shares sees beside the largest, 1.
INLINE Floats share_of(Floats x) {
    const Power two = power_of_two(x < LOWEST_POWER ? all(LOWEST_POWER) : x);  // asked this way, NaN is not replaced
    Floats power = all(0.00015353362f);
    power = fma(power, two.part, all(0.0013398875f));
    power = fma(power, two.part, all(0.009618437f));
    power = fma(power, two.part, all(0.055503324f));
    power = fma(power, two.part, all(0.24022648f));
    power = fma(power, two.part, all(0.6931472f));
    power = fma(power, two.part, all(1.0f));
    return power * two.whole;
}

struct Singles {
    using Sum = Floats;
    typedef float Number;
    static constexpr long PER_STEP = 1, KEYS_OF_BLOCK = 512;

    explicit Singles(long) {}

    static __attribute__((always_inline)) Floats add(Floats sums, Floats x, Floats y) {
        return add_singles(sums, x, y);
    }

    // Copy a key or a query, with zeros up to a multiple of 16. Return 1, or NaN if it is not finite.
    __attribute__((always_inline)) float take(const float* x, long n, float* y) const {
        Floats zeros = {};
        for (long i = 0; i < n; i += LANES) {
            const Floats values = load(x + i, n - i);
            zeros += values * 0.0f;
            store(y + i, values);
        }
        return 1.0f + sum(zeros);
    }

    // Put the values into panels of 32 features.
    static __attribute__((always_inline)) void pack_values(const AttentionTask& task, const Layout& at) {
        for (long j = 0; j < at.n_keys; j++)
            for (long c = 0; c < at.n_columns; c += LANES)
                store(at.value_panel(task, c) + j * PANEL + c % PANEL,
                      load(task.values + j * task.value_stride + c, at.head_size - c));
    }

    static __attribute__((always_inline)) Floats scores_of(Floats sums, const float*) { return sums; }

    // Turn a query's scores into shares, for `factor` that makes them powers of two. Return the sum of the shares.
    static __attribute__((always_inline)) float compute_shares(const float* scores, long n_places, float highest,
                                                               float factor, float* shares) {
        const Floats factors = all(factor), reach = all(-(highest * factor));
        Floats total = {};
        for (long j = 0; j < n_places; j += LANES) {
            const Floats here = share_of(fma(load(scores + j), factors, reach));
            total += here;
            store(shares + j, here);
        }
        return sum(total);
    }

    static __attribute__((always_inline)) Floats output_of(Floats sums, const float*, float inverse) {
        return sums * inverse;
    }
};

}  // namespace
