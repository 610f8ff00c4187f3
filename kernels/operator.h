// How an operator is written: a struct with its names and types, which reads its inputs, checks them and computes.
//
// Nothing here throws. A check that fails is kept, and what follows it finds sizes of 0; the runtime gets the
// message.
#pragma once
#include <stdlib.h>

#include <new>
#include <type_traits>

#include "numbers/kernels.h"
#include "onnxruntime.h"

constexpr size_t MOST_DIMENSIONS = 8;
// Sizes of inputs are kept so small that no product of two of them, or of their bytes, overflows 64 bits by far.
constexpr int64_t MOST_NUMBERS = int64_t{1} << 40;

// A tensor of one or two dimensions, or more of which the last ones count as one.
template <class Number>
struct Tensor {
    Number* data = nullptr;
    int64_t n_rows = 0, n_columns = 0;

    bool is_vector_of(int64_t n) const { return n_rows == n && n_columns == 1; }
};

// Memory for a task, at a multiple of 64 bytes; null where there is no more.
struct Scratch {
    float* data;

    explicit Scratch(long n)
        : data(static_cast<float*>(aligned_alloc(64, (static_cast<size_t>(n) * sizeof(float) + 63) / 64 * 64))) {}
    ~Scratch() { free(data); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

// What an operator reads when it is made.
class Attributes {
  public:
    Attributes(onnxruntime::Functions api, const onnxruntime::KernelInfo* info) : api(api), info(info) {}

    int64_t integer(const char* name) {
        int64_t value = 0;
        keep(api.int_attribute(info, name, &value));
        return value;
    }

    int byte(const char* name) {
        const int64_t value = integer(name);
        check(value >= 0 && value <= 255, "an attribute that stands for a byte is not between 0 and 255");
        return static_cast<int>(value);
    }

    float number(const char* name) {
        float value = 0;
        keep(api.float_attribute(info, name, &value));
        return value;
    }

    void check(bool holds, const char* message) {
        if (!holds && !failure) failure = api.failed(onnxruntime::INVALID_ARGUMENT, message);
    }

    onnxruntime::Status* failure = nullptr;

  private:
    void keep(onnxruntime::Status* status) {
        if (!failure) failure = status;
        else api.release(status);
    }

    onnxruntime::Functions api;
    const onnxruntime::KernelInfo* info;
};

// What an operator reads and writes when it computes.
class Run {
  public:
    Run(onnxruntime::Functions api, onnxruntime::Context* context) : api(api), context(context) {}

    // Return an input; for one that is left out, without data.
    template <class Number>
    Tensor<const Number> input(size_t i) {
        const onnxruntime::Value* value = nullptr;
        size_t n = 0;
        if (!keep(api.n_inputs(context, &n)) || i >= n || !keep(api.input(context, i, &value)) || !value) return {};
        onnxruntime::Shape* shape = nullptr;
        void* data = nullptr;
        if (!keep(api.shape(value, &shape))) return {};
        int64_t sizes[MOST_DIMENSIONS] = {1};
        const bool is_known = keep(api.n_dimensions(shape, &n)) &&
                              check(n <= MOST_DIMENSIONS, "an input has too many dimensions") &&
                              keep(api.dimensions(shape, sizes, n));
        api.release(shape);
        if (!is_known || !keep(api.data(const_cast<onnxruntime::Value*>(value), &data))) return {};
        int64_t n_columns = 1, n_numbers = 1;
        for (size_t d = 0; d < n; d++) {
            if (!check(sizes[d] <= MOST_NUMBERS / n_numbers, "an input is too large")) return {};
            // A tensor without numbers counts too: its other sizes may be anything.
            if (sizes[d]) n_numbers *= sizes[d];
            if (d > 0) n_columns *= sizes[d];
        }
        return {static_cast<const Number*>(data), sizes[0], n_columns};
    }

    template <class Number>
    Tensor<Number> output(size_t i, int64_t n_rows, int64_t n_columns) {
        return make<Number>(i, n_rows, n_columns, 2);
    }

    template <class Number>
    Tensor<Number> output(size_t i, int64_t n_rows) {
        return make<Number>(i, n_rows, 1, 1);
    }

    // Return whether the check holds, and no other has failed before.
    bool check(bool holds, const char* message, onnxruntime::ErrorCode code = onnxruntime::INVALID_ARGUMENT) {
        if (!holds && !failure) failure = api.failed(code, message);
        return !failure;
    }

    // Call task(0) to task(n - 1), on the threads of the session.
    template <class Task>
    void each(int64_t n, const Task& task) {
        if (failure) return;
        if (n <= 1) {
            if (n == 1) task(0);
            return;
        }
        auto call = [](void* of, size_t i) { (*static_cast<const Task*>(of))(static_cast<int64_t>(i)); };
        keep(api.parallel_for(context, call, static_cast<size_t>(n), const_cast<Task*>(&task)));
    }

    // Call task(start, n) for blocks of tokens, on the threads of the session. Sixteen are worth a task.
    template <class Task>
    void each_block(int64_t n_tokens, const Task& task) {
        constexpr int64_t most = 16;
        each((n_tokens + most - 1) / most, [&](int64_t block) {
            const int64_t start = block * most, left = n_tokens - start;
            task(start, left < most ? left : most);
        });
    }

    onnxruntime::Status* failure = nullptr;

  private:
    bool keep(onnxruntime::Status* status) {
        if (failure) api.release(status);
        else failure = status;
        return !failure;
    }

    template <class Number>
    Tensor<Number> make(size_t i, int64_t n_rows, int64_t n_columns, size_t n_dimensions) {
        const int64_t sizes[] = {n_rows, n_columns};
        onnxruntime::Value* value = nullptr;
        void* data = nullptr;
        if (failure || !keep(api.output(context, i, sizes, n_dimensions, &value)) || !keep(api.data(value, &data)))
            return {};
        return {static_cast<Number*>(data), n_rows, n_columns};
    }

    onnxruntime::Functions api;
    onnxruntime::Context* context;
};

// The runtime's view of an operator. `Operator` has NAME, INPUTS, N_REQUIRED, OUTPUTS, a constructor that takes
// Attributes, and compute(Run&).
template <class Operator>
struct Described : onnxruntime::CustomOp {
    struct Kernel {
        onnxruntime::Functions api;
        Operator of;
    };

    Described() {
        using onnxruntime::CustomOp, onnxruntime::Status;
        name = [](const CustomOp*) { return Operator::NAME; };
        provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU
        input_type = [](const CustomOp*, size_t i) { return Operator::INPUTS[i]; };
        n_inputs = [](const CustomOp*) { return sizeof Operator::INPUTS / sizeof *Operator::INPUTS; };
        output_type = [](const CustomOp*, size_t i) { return Operator::OUTPUTS[i]; };
        n_outputs = [](const CustomOp*) { return sizeof Operator::OUTPUTS / sizeof *Operator::OUTPUTS; };
        input_characteristic = [](const CustomOp*, size_t i) {
            return i < Operator::N_REQUIRED ? onnxruntime::REQUIRED : onnxruntime::OPTIONAL;
        };
        output_characteristic = [](const CustomOp*, size_t) { return onnxruntime::REQUIRED; };
        input_memory = [](const CustomOp*, size_t) { return 0; };
        first_version = [](const CustomOp*) { return 1; };
        last_version = [](const CustomOp*) { return 1; };
        // malloc, as C++'s own allocation would bring its runtime library along.
        static_assert(std::is_trivially_destructible_v<Kernel>);
        destroy = [](void* kernel) { free(kernel); };
        create_kernel_or_fail = [](const CustomOp*, onnxruntime::Api api, const onnxruntime::KernelInfo* info,
                                   void** kernel) -> Status* {
            const onnxruntime::Functions functions{api};
            if (!kernels()) return functions.failed(onnxruntime::FAIL, "no kernels of rankrt run on this processor");
            Attributes attributes{functions, info};
            const Operator of{attributes};
            if (attributes.failure) return attributes.failure;
            void* const memory = malloc(sizeof(Kernel));
            if (!memory) return functions.failed(onnxruntime::FAIL, "there is not enough memory for an operator");
            *kernel = new (memory) Kernel{functions, of};
            return nullptr;
        };
        compute_or_fail = [](void* kernel, onnxruntime::Context* context) -> Status* {
            auto* of = static_cast<Kernel*>(kernel);
            Run run{of->api, context};
            of->of.compute(run);
            return run.failure;
        };
    }
};
