// Rounding of activations, token by token.
#pragma once
#include "kernels.h"
#include "vector.h"

namespace {

INLINE Floats multiplied(const RoundingTask& task, const float* x, long i, long n) {
    const Floats values = load(x + i, n);
    return task.factors ? values * load(task.factors + i, n) : values;
}

// A token with a NaN or an infinity has a scale of NaN or infinity, so its outputs are not finite either.
void round_tokens(const RoundingTask& task) {
    const float n_steps = (float)(255 - task.zero_point);
    const Floats rounder = all(ROUNDER + (float)task.zero_point);
    for (long token = 0; token < task.n_tokens; token++) {
        const float* x = task.x + token * task.n_inputs;
        Ints most = {};
        for (long i = 0; i < task.n_inputs; i += LANES)
            most = larger(most, magnitudes(multiplied(task, x, i, task.n_inputs - i)));
        const float reach = __builtin_bit_cast(float, largest(most));
        // Asked this way, NaN is not replaced. Only GELU's outputs have another zero point than 128. Their negative
        // numbers are smaller than the floor, so the largest magnitude is right for them as well.
        float scale = reach / n_steps;
        scale = scale <= task.floor ? task.floor : scale;
        task.scales[token] = scale;
        const Floats inverse = all(1.0f / scale);
        uint8_t* bytes = task.bytes + token * task.stride;
        for (long i = 0; i < task.n_inputs; i += LANES) {
            // The low byte of the sum's bits is the nearest integer.
            const Ints sums = bits(fma(multiplied(task, x, i, task.n_inputs - i), inverse, rounder));
            store(bytes + i, __builtin_convertvector(sums & 255, Bytes), task.n_inputs - i);
        }
        __builtin_memset(bytes + task.n_inputs, task.zero_point, task.stride - task.n_inputs);
    }
}

}  // namespace
