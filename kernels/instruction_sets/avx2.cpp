// AVX2: two products of bytes are added in 16 bits, which may not overflow.
//
// Activations are taken as signed, from -128 to 127, and split: their magnitudes are multiplied by weights that have
// their signs. Two such products are 2 * 128 * 127 = 32,512 at most, which fits; so weights are from -127 to 127.
#include "halves.h"

namespace {

constexpr int BYTE_OFFSET = 128;

INLINE __m256i add_quads_256(__m256i sums, __m256i bytes, __m256i weights) {
    const __m256i signed_bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed_bytes), _mm256_sign_epi8(weights, signed_bytes));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE __m256i add_pairs_256(__m256i sums, __m256i x, __m256i y) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(x, y));
}

INLINE Ints add_quads(Ints sums, Ints bytes, Ints weights) { return by_halves<add_quads_256>(sums, bytes, weights); }
INLINE Ints add_pairs(Ints sums, Ints x, Ints y) { return by_halves<add_pairs_256>(sums, x, y); }

}  // namespace

#include "../numbers/table.h"

extern const Kernels AVX2;
constinit const Kernels AVX2 = table("avx2");
