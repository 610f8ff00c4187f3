// Some rows times a panel of 32 columns: the inner loop of linear layers and of attention.
//
// A step takes four bytes of each row and of each column: four inputs of 8 bits, two of 16, or one float. How integers
// are added up is said by the instruction set, which defines, before it includes this:
//   ROWS           how many rows its registers hold the sums of, 32 for each
//   BYTE_OFFSET    what add_quads takes from each byte before it multiplies
//   add_quads      sums[i] + the four products of (bytes[i] - BYTE_OFFSET) and weights[i], bytes without a sign
//   add_pairs      sums[i] + the two products of numbers of 16 bits
#pragma once
#include "kernels.h"
#include "vector.h"

namespace {

// What R rows add up to, in registers: columns [0, 16) and [16, 32) of the panel.
template <class Vector, int R>
struct Sums {
    Vector left[R], right[R];
};

// One product of floats, which is rounded once with its sum. Each sum is added up in the order of the steps.
INLINE Floats add_singles(Floats sums, Floats x, Floats y) { return fma(x, y, sums); }

constexpr long BYTES_OF_STEP = 4 * PANEL;

// Add a step to the sums of rows FROM to TO. The four bytes of row 0 are at `rows`, those of the columns at `columns`.
template <class Vector, Vector (*add)(Vector, Vector, Vector), int FROM, int TO, int R>
INLINE void add_step(Sums<Vector, R>& sums, const char* rows, long stride, const char* columns) {
    Vector left, right;
    __builtin_memcpy(&left, columns, sizeof left);
    __builtin_memcpy(&right, columns + sizeof left, sizeof right);
#pragma unroll
    for (int row = FROM; row < TO; row++) {
        int32_t four;
        __builtin_memcpy(&four, rows + row * stride, sizeof four);
        const Vector x = (Vector)(Ints{} + four);
        sums.left[row] = add(sums.left[row], x, left);
        sums.right[row] = add(sums.right[row], x, right);
    }
}

// Multiply R rows, which begin `stride` bytes apart, by a panel (n_steps, 32) of four bytes each. The sums of all rows
// begin with `starts`.
//
// With FETCHES, what is `ahead` of the panel by so many bytes comes into the second cache on the way. That is not asked
// at each step: a branch there made Clang keep sums in memory, and 56 tokens took 14 % longer.
//
// The second half of the rows follows the first by LAG steps. Rows that begin a multiple of 4,096 bytes apart share one
// place of the first cache, which holds 8 lines: 12 rows of 1,024 floats took 8 % longer without a lag.
template <class Vector, Vector (*add)(Vector, Vector, Vector), int R, bool FETCHES, long LAG = 0>
INLINE Sums<Vector, R> products(const Vector (&starts)[2], const void* rows, long stride, const void* panel,
                                long n_steps, long ahead = 0) {
    constexpr int HALF = LAG ? R / 2 : R;
    const long lag = LAG < n_steps ? LAG : n_steps;
    const char* const bytes = static_cast<const char*>(rows);
    // Where Clang sees how the stride is made, it computes addresses for each row and keeps sums in memory.
    __asm__("" : "+r"(stride));
    const char* const columns = static_cast<const char*>(panel);
    Sums<Vector, R> sums;
#pragma unroll
    for (int row = 0; row < R; row++) {
        sums.left[row] = starts[0];
        sums.right[row] = starts[1];
    }
    const auto add_first = [&](long step) __attribute__((always_inline)) {
        const char* const here = columns + step * BYTES_OF_STEP;
        if constexpr (FETCHES) {
            __builtin_prefetch(here + ahead, 0, 2);
            __builtin_prefetch(here + ahead + BYTES_OF_STEP / 2, 0, 2);
        }
        add_step<Vector, add, 0, HALF>(sums, bytes + step * 4, stride, here);
    };
    const auto add_second = [&](long step) __attribute__((always_inline)) {
        add_step<Vector, add, HALF, R>(sums, bytes + step * 4, stride, columns + step * BYTES_OF_STEP);
    };
    for (long step = 0; step < lag; step++) add_first(step);
    for (long step = lag; step < n_steps; step++) {
        add_first(step);
        if constexpr (LAG > 0) add_second(step - lag);
    }
    for (long step = n_steps - lag; step < n_steps; step++) add_second(step);
    return sums;
}

}  // namespace
