// AVX-512 VNNI: four products of bytes are added in 32 bits, in 16 places at once; 32 registers hold 12 rows.
#include <immintrin.h>

#include "../numbers/vector.h"

namespace {

constexpr int ROWS = 12;
constexpr int BYTE_OFFSET = 0;

INLINE Ints add_quads(Ints sums, Ints bytes, Ints weights) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)bytes, (__m512i)weights);
}

INLINE Ints add_pairs(Ints sums, Ints x, Ints y) {
    // Clang would take two instructions for its intrinsic.
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(y));
    return sums;
}

}  // namespace

#include "../numbers/add_norm.h"
#include "../numbers/attention.h"
#include "../numbers/linear.h"
#include "../numbers/round_tokens.h"

extern const Kernels AVX512_VNNI;
const Kernels AVX512_VNNI = {"avx512_vnni", round_tokens, linear, scratch_size, attend, add_norm};
