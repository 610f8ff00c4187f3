// Writes one line for each call that is worth knowing to the file that FAKE_CUDA_LOG names.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>

inline void say(const char* format, ...) {
    static std::mutex lock;
    static FILE* file = [] {
        const char* path = getenv("FAKE_CUDA_LOG");
        return path ? fopen(path, "a") : nullptr;
    }();
    if (!file) return;
    std::lock_guard<std::mutex> guard(lock);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
    fflush(file);
}

// The compute capability to claim: FAKE_CUDA_SM=90 (the default) is 9.0.
inline int claimed_sm() {
    const char* text = getenv("FAKE_CUDA_SM");
    return text ? atoi(text) : 90;
}
