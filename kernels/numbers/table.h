// All kernels of the instruction set whose products are defined before this is included.
#pragma once
#include "add_norm.h"
#include "float_attention.h"
#include "integer_attention.h"
#include "kernels.h"
#include "linear.h"
#include "round_tokens.h"

namespace {

constexpr Kernels table(const char* name) {
    return {
        .name = name,
        .round_tokens = round_tokens,
        .linear = linear<LinearTask>,
        .float_linear = linear<FloatLinearTask>,
        .attention = {.scratch_size = scratch_size<Integers>, .attend = attend<Integers>},
        .float_attention = {.scratch_size = scratch_size<Singles>, .attend = attend<Singles>},
        .add_norm = add_norm,
    };
}

}  // namespace
