// AVX2: two products of bytes are added in 16 bits, which may not overflow.
//
// Activations are taken as signed, from -128 to 127, and split: their magnitudes are multiplied by weights that have
// their signs. Two such products are 2 * 128 * 127 = 32,512 at most, which fits.
#include <immintrin.h>

#include "../numbers/vector.h"

namespace {

constexpr int ROWS = 3;
constexpr int BYTE_OFFSET = 128;

INLINE __m256i of_quads(__m256i sums, __m256i bytes, __m256i weights) {
    const __m256i signed_bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8((char)0x80));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed_bytes), _mm256_sign_epi8(weights, signed_bytes));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE __m256i of_pairs(__m256i sums, __m256i x, __m256i y) { return _mm256_add_epi32(sums, _mm256_madd_epi16(x, y)); }

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

extern const Kernels AVX2;
const Kernels AVX2 = {"avx2", round_tokens, linear, scratch_size, attend, add_norm};
