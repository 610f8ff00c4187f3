// Vectors of 512 bits as two registers of 256, for instruction sets without larger ones.
//
// 16 registers hold the sums of 3 rows in 12 of them, 2 for each half of a panel.
#pragma once
#include <immintrin.h>

#include "../numbers/vector.h"

namespace {

constexpr int ROWS = 3;

template <__m256i (*add)(__m256i, __m256i, __m256i)>
INLINE Ints by_halves(Ints sums, Ints x, Ints y) {
    __m256i s[2], a[2], b[2];
    __builtin_memcpy(s, &sums, sizeof s);
    __builtin_memcpy(a, &x, sizeof a);
    __builtin_memcpy(b, &y, sizeof b);
    for (int half = 0; half < 2; half++) s[half] = add(s[half], a[half], b[half]);
    __builtin_memcpy(&sums, s, sizeof sums);
    return sums;
}

}  // namespace
