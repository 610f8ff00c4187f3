// Some rows times a panel of 32 columns, in integers: the inner loop of linear layers and of attention.
//
// A step takes four bytes of each row and of each column: four inputs of 8 bits, or two of 16. What it adds up is
// said by the instruction set, which defines, before it includes this:
//   ROWS           how many rows its registers hold the sums of, 32 for each
//   BYTE_OFFSET    what add_quads takes from each byte before it multiplies
//   add_quads      sums[i] + the four products of (bytes[i] - BYTE_OFFSET) and weights[i], bytes without a sign
//   add_pairs      sums[i] + the two products of numbers of 16 bits
#pragma once
#include "kernels.h"
#include "vector.h"

namespace {

// What R rows add up to, in registers: columns [0, 16) and [16, 32) of the panel.
template <int R>
struct Sums {
    Ints left[R], right[R];
};

constexpr long BYTES_OF_STEP = 4 * PANEL;

// Multiply R rows, which begin `stride` bytes apart, by a panel (n_steps, 32) of four bytes each. The sums of all rows
// begin with `starts`.
//
// With FETCHES, what is `ahead` of the panel by so many bytes comes into the second cache on the way. That is not asked
// at each step: a branch there made Clang keep sums in memory, and 56 tokens took 14 % longer.
template <Ints (*add)(Ints, Ints, Ints), int R, bool FETCHES>
INLINE Sums<R> products(const Ints (&starts)[2], const void* rows, long stride, const void* panel, long n_steps,
                        long ahead = 0) {
    const char* const bytes = static_cast<const char*>(rows);
    // Where Clang sees how the stride is made, it computes addresses for each row and keeps sums in memory.
    __asm__("" : "+r"(stride));
    const char* const columns = static_cast<const char*>(panel);
    Sums<R> sums;
#pragma unroll
    for (int row = 0; row < R; row++) {
        sums.left[row] = starts[0];
        sums.right[row] = starts[1];
    }
    for (long step = 0; step < n_steps; step++) {
        const char* const here = columns + step * BYTES_OF_STEP;
        if constexpr (FETCHES) {
            __builtin_prefetch(here + ahead, 0, 2);
            __builtin_prefetch(here + ahead + BYTES_OF_STEP / 2, 0, 2);
        }
        Ints left, right;
        __builtin_memcpy(&left, here, sizeof left);
        __builtin_memcpy(&right, here + sizeof left, sizeof right);
#pragma unroll
        for (int row = 0; row < R; row++) {
            int32_t four;
            __builtin_memcpy(&four, bytes + row * stride + step * 4, sizeof four);
            const Ints x = Ints{} + four;
            sums.left[row] = add(sums.left[row], x, left);
            sums.right[row] = add(sums.right[row], x, right);
        }
    }
    return sums;
}

}  // namespace
