// The choice of an instruction set, once, when the library is loaded.
#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

#include "../numbers/kernels.h"

extern const Kernels AVX2, AVX_VNNI, AVX512_VNNI;

namespace {

// What the processor has, of what the operating system keeps for a thread.
struct Processor {
    bool avx2, avx_vnni, avx512_vnni;
};

Processor this_processor() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return {};
    const bool keeps_registers = (c >> 27 & 1) != 0, has_fma = (c >> 12 & 1) != 0;
    if (!keeps_registers || !has_fma) return {};
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool keeps_256 = (low & 0x06) == 0x06, keeps_512 = (low & 0xe6) == 0xe6;
    unsigned extended_a, extended_b, extended_c, unused_a, unused_b, unused_c;
    if (!__get_cpuid_count(7, 0, &extended_a, &extended_b, &extended_c, &d)) return {};
    if (!__get_cpuid_count(7, 1, &unused_a, &unused_b, &unused_c, &d)) unused_a = 0;
    const bool avx2 = keeps_256 && (extended_b >> 5 & 1);
    // F, DQ, BW and VL, and VNNI: what the compiler may use in the code for it.
    const unsigned foundation = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const bool avx512 = keeps_512 && (extended_b & foundation) == foundation;
    return {
        .avx2 = avx2,
        .avx_vnni = avx2 && (unused_a >> 4 & 1),
        .avx512_vnni = avx2 && avx512 && (extended_c >> 11 & 1),
    };
}

const Kernels* choose() {
    const Processor processor = this_processor();
    const struct {
        const Kernels* kernels;
        bool runs;
    } best_first[] = {
        {&AVX512_VNNI, processor.avx512_vnni},
        {&AVX_VNNI, processor.avx_vnni},
        {&AVX2, processor.avx2},
    };
    const char* asked = getenv("RANKRT_KERNELS");
    for (const auto& [kernels, runs] : best_first)
        if (runs && (!asked || !*asked || !strcmp(asked, kernels->name))) return kernels;
    return nullptr;
}

const Kernels* const CHOSEN = choose();

}  // namespace

const Kernels* kernels() { return CHOSEN; }
