// AVX-VNNI: four products of bytes, or two of 16 bits, are added in 32 bits, in 8 places at once.
#include "halves.h"

namespace {

constexpr int BYTE_OFFSET = 0;

INLINE __m256i add_quads_256(__m256i sums, __m256i bytes, __m256i weights) {
    return _mm256_dpbusd_avx_epi32(sums, bytes, weights);
}

INLINE __m256i add_pairs_256(__m256i sums, __m256i x, __m256i y) { return _mm256_dpwssd_avx_epi32(sums, x, y); }

INLINE Ints add_quads(Ints sums, Ints bytes, Ints weights) { return by_halves<add_quads_256>(sums, bytes, weights); }
INLINE Ints add_pairs(Ints sums, Ints x, Ints y) { return by_halves<add_pairs_256>(sums, x, y); }

}  // namespace

#include "../numbers/table.h"

extern const Kernels AVX_VNNI;
constinit const Kernels AVX_VNNI = table("avx_vnni");
