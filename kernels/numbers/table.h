// All kernels of the instruction set whose products are defined before this is included.
#pragma once
#include "add_norm.h"
#include "attention.h"
#include "kernels.h"
#include "linear.h"
#include "round_tokens.h"

namespace {

constexpr Kernels table(const char* name) {
    return {
        .name = name,
        .round_tokens = round_tokens,
        .linear = linear,
        .scratch_size = scratch_size,
        .attend = attend,
        .add_norm = add_norm,
    };
}

}  // namespace
