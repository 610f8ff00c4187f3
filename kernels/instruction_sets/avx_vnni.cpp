// AVX-VNNI: four products of bytes are added in 32 bits, in 8 places at once.
#include <immintrin.h>

#include "../numbers/vector.h"

namespace {

constexpr int ROWS = 3;
constexpr int BYTE_OFFSET = 0;

INLINE __m256i of_quads(__m256i sums, __m256i bytes, __m256i weights) {
    return _mm256_dpbusd_avx_epi32(sums, bytes, weights);
}

INLINE __m256i of_pairs(__m256i sums, __m256i x, __m256i y) { return _mm256_dpwssd_avx_epi32(sums, x, y); }

INLINE Ints add_quads(Ints sums, Ints bytes, Ints weights) {
    __m256i s[2], x[2], y[2];
    __builtin_memcpy(s, &sums, 64), __builtin_memcpy(x, &bytes, 64), __builtin_memcpy(y, &weights, 64);
    for (int half = 0; half < 2; half++) s[half] = of_quads(s[half], x[half], y[half]);
    __builtin_memcpy(&sums, s, 64);
    return sums;
}

INLINE Ints add_pairs(Ints sums, Ints one, Ints other) {
    __m256i s[2], x[2], y[2];
    __builtin_memcpy(s, &sums, 64), __builtin_memcpy(x, &one, 64), __builtin_memcpy(y, &other, 64);
    for (int half = 0; half < 2; half++) s[half] = of_pairs(s[half], x[half], y[half]);
    __builtin_memcpy(&sums, s, 64);
    return sums;
}

}  // namespace

#include "../numbers/add_norm.h"
#include "../numbers/attention.h"
#include "../numbers/linear.h"
#include "../numbers/round_tokens.h"

extern const Kernels AVX_VNNI;
const Kernels AVX_VNNI = {"avx_vnni", round_tokens, linear, scratch_size, attend, add_norm};
