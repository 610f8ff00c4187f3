// AVX-512 VNNI: four products of bytes, or two of 16 bits, are added in 32 bits, in 16 places at once.
#include <immintrin.h>

#include "../numbers/vector.h"

namespace {

// 32 registers hold the sums of 12 rows in 24 of them.
constexpr int ROWS = 12;
constexpr int BYTE_OFFSET = 0;

INLINE Ints add_quads(Ints sums, Ints bytes, Ints weights) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)bytes, (__m512i)weights);
}

INLINE Ints add_pairs(Ints sums, Ints x, Ints y) {
    // Clang would make two instructions of its intrinsic.
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(y));
    return sums;
}

}  // namespace

#include "../numbers/table.h"

extern const Kernels AVX512_VNNI;
constinit const Kernels AVX512_VNNI = table("avx512_vnni");
