// Sixteen floats at once, and the functions of them that operators need.
//
// The compiler lowers these to one, two or four registers, so that an operator is written once for all instruction
// sets. Every result is the same to the bit on all of them: each step is one IEEE operation, sums are kept in
// sixteen places that are folded in one order, and nothing is contracted or reordered (-ffp-contract=off).
//
// Each instruction set compiles this file for itself. All of it is in an unnamed namespace: a function with a
// linkage of its own would be merged by the linker, and code for AVX-512 would run where there is none.
#pragma once
#include <cstdint>

namespace {

constexpr long LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

#define INLINE static inline __attribute__((always_inline))

INLINE Floats load(const float* from) {
    Floats found;
    __builtin_memcpy(&found, from, sizeof found);
    return found;
}

INLINE void store(float* to, Floats values) { __builtin_memcpy(to, &values, sizeof values); }

// Load the first n floats, the others 0; none where n is negative.
INLINE Floats load(const float* from, long n) {
    if (n >= LANES) return load(from);
    Floats found = {};
    if (n > 0) __builtin_memcpy(&found, from, n * sizeof(float));
    return found;
}

// Store the first n floats; none where n is negative.
INLINE void store(float* to, Floats values, long n) {
    if (n >= LANES) return store(to, values);
    if (n > 0) __builtin_memcpy(to, &values, n * sizeof(float));
}

typedef uint8_t Bytes __attribute__((vector_size(16)));

// Store the first n bytes, one or more.
INLINE void store(uint8_t* to, Bytes values, long n) {
    if (n >= LANES) __builtin_memcpy(to, &values, sizeof values);
    else __builtin_memcpy(to, &values, n);
}

// Zero is subtracted, as that changes no number: added to -0 it would, so Clang would keep the instruction.
INLINE Floats all(float value) { return value - Floats{}; }

INLINE Floats fma(Floats a, Floats b, Floats c) { return __builtin_elementwise_fma(a, b, c); }

INLINE Ints bits(Floats values) { return (Ints)values; }

INLINE Floats floats_of(Ints bits) { return (Floats)bits; }

// The first n of sixteen places hold all ones, the others zeros.
INLINE Ints first(long n) {
    const Ints places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return places < (int32_t)n;
}

// Bits of |x|. As integers they are in the order of the numbers, infinity after all numbers and NaN after infinity,
// so that a maximum of them does not lose a NaN.
INLINE Ints magnitudes(Floats values) { return bits(values) & 0x7fffffff; }

INLINE Ints larger(Ints a, Ints b) { return a > b ? a : b; }

// Combine sixteen places to one, in one order.
template <class Vector, class Combine>
INLINE auto folded(Vector sixteen, Combine combine) {
    const auto eight = combine(__builtin_shufflevector(sixteen, sixteen, 0, 1, 2, 3, 4, 5, 6, 7),
                               __builtin_shufflevector(sixteen, sixteen, 8, 9, 10, 11, 12, 13, 14, 15));
    const auto four =
        combine(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
    const auto two = combine(__builtin_shufflevector(four, four, 0, 1), __builtin_shufflevector(four, four, 2, 3));
    return combine(two[0], two[1]);
}

INLINE float sum(Floats values) {
    return folded(values, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}

template <class Vector>
INLINE auto largest(Vector values) {
    return folded(values, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

// Added to a float of less than 2^22, this puts the nearest integer, halves to even, into the low bits.
constexpr float ROUNDER = 12582912.0f;

// 2^x is `whole` times 2^`part`: a power of an integer, and one from -1/2 to 1/2. x is LOWEST_POWER or above.
struct Power {
    Floats whole, part;
};

constexpr float LOWEST_POWER = -126.0f;

INLINE Power power_of_two(Floats x) {
    // With the exponent's bias added, the low bits are those of the power of two.
    const Floats shifted = x + (ROUNDER + 127.0f);
    return {.whole = floats_of(bits(shifted) << 23), .part = x - (shifted - (ROUNDER + 127.0f))};
}

// Return the exact GELU, x times the normal distribution's share below x, to 1.7e-7 of the larger of 1 and |x|.
//
// It is max(x, 0) less |x| times the share below -|x|: so what is far below 0 has no difference of large numbers. That
// share is a polynomial times (5.75 - |x|)^2, fitted so that the product is exact to 3.6e-8. Beyond 5.75 it is 0.
// A quotient of shorter polynomials is as exact and takes longer.
INLINE Floats gelu(Floats x) {
    const Floats far = floats_of(magnitudes(x));
    const Floats left = 5.75f - (far > 5.75f ? all(5.75f) : far);  // asked this way, NaN is not replaced
    const Floats t = fma(left, all(-2.0f / 5.75f), all(1.0f));
    Floats share = all(0.000639714f);
    share = fma(share, t, all(-0.00020780685f));
    share = fma(share, t, all(-0.0028416717f));
    share = fma(share, t, all(0.002075473f));
    share = fma(share, t, all(0.004692571f));
    share = fma(share, t, all(-0.006844309f));
    share = fma(share, t, all(-0.0007855419f));
    share = fma(share, t, all(0.009263811f));
    share = fma(share, t, all(-0.008588628f));
    share = fma(share, t, all(-0.0005341636f));
    share = fma(share, t, all(0.008721662f));
    share = fma(share, t, all(-0.009577155f));
    share = fma(share, t, all(0.005479644f));
    share = fma(share, t, all(-0.001736657f));
    share = fma(share, t, all(0.0002444021f));
    return fma(-far, share * (left * left), x < 0.0f ? Floats{} : x);
}

}  // namespace
