// The sum of two rows of states, normalised over its features.
#pragma once
#include "kernels.h"
#include "vector.h"

namespace {

void add_norm(const NormTask& task) {
    const long n = task.n_features;
    for (long token = 0; token < task.n_tokens; token++) {
        const float* x = task.x + token * n;
        const float* y = task.y + token * n;
        float* z = task.z + token * n;
        Floats total = {};
        for (long i = 0; i < n; i += LANES) {
            const Floats both = load(x + i, n - i) + load(y + i, n - i);
            store(z + i, both, n - i);
            total += both;
        }
        const Floats mean = all(sum(total) / (float)n);
        Floats squares = {};
        for (long i = 0; i < n; i += LANES) {
            Floats off = load(z + i, n - i) - mean;
            if (n - i < LANES) off = first(n - i) ? off : Floats{};
            squares = fma(off, off, squares);
        }
        const Floats inverse = all(1.0f / __builtin_sqrtf(sum(squares) / (float)n + task.epsilon));
        for (long i = 0; i < n; i += LANES) {
            const Floats normal = (load(z + i, n - i) - mean) * inverse;
            const Floats bias = task.bias ? load(task.bias + i, n - i) : Floats{};
            store(z + i, fma(normal, load(task.weight + i, n - i), bias), n - i);
        }
    }
}

}  // namespace
