// How an operator is written: a struct with its names and types, which reads its inputs, checks them and computes.
//
// Nothing here throws. A check that fails is kept, and what follows it finds sizes of 0; the runtime gets the message.
#pragma once
#include <stdlib.h>

#include <new>
#include <type_traits>

#include "numbers/kernels.h"
#include "onnxruntime.h"

// A tensor of one or two dimensions, or more of which the last ones count as one.
template <class Number>
struct Tensor {
    Number* data = nullptr;
    int64_t n_rows = 0, n_columns = 0;
};

// Memory for a task, at a multiple of 64 bytes.
struct Scratch {
    float* data;

    explicit Scratch(long n) : data((float*)aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64)) {}
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

    float number(const char* name) {
        float value = 0;
        keep(api.float_attribute(info, name, &value));
        return value;
    }

    onnxruntime::Status* failure = nullptr;

  private:
    void keep(onnxruntime::Status* status) {
        if (!failure) failure = status;  // a second one is lost: nothing runs after a first
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
        int64_t sizes[8];
        const bool is_known = keep(api.n_dimensions(shape, &n)) && n <= 8 && keep(api.dimensions(shape, sizes, n));
        api.release(shape);
        check(is_known, "an input has too many dimensions");
        if (failure || !keep(api.data(const_cast<onnxruntime::Value*>(value), &data))) return {};
        int64_t n_columns = 1;
        for (size_t d = 1; d < n; d++) n_columns *= sizes[d];
        return {(const Number*)data, n ? sizes[0] : 1, n_columns};
    }

    template <class Number>
    Tensor<Number> output(size_t i, int64_t n_rows, int64_t n_columns) {
        return make<Number>(i, n_rows, n_columns, 2);
    }

    template <class Number>
    Tensor<Number> output(size_t i, int64_t n_rows) { return make<Number>(i, n_rows, 1, 1); }

    // Return whether the check holds, and no other has failed before.
    bool check(bool holds, const char* message) {
        if (!holds && !failure) failure = api.failed(onnxruntime::INVALID_ARGUMENT, message);
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
        auto call = [](void* of, size_t i) { (*(const Task*)of)((int64_t)i); };
        keep(api.parallel_for(context, call, (size_t)n, (void*)&task));
    }

    onnxruntime::Status* failure = nullptr;

  private:
    bool keep(onnxruntime::Status* status) {
        if (status && !failure) failure = status;
        return !failure;
    }

    template <class Number>
    Tensor<Number> make(size_t i, int64_t n_rows, int64_t n_columns, size_t n_dimensions) {
        const int64_t sizes[] = {n_rows, n_columns};
        onnxruntime::Value* value = nullptr;
        void* data = nullptr;
        if (failure || !keep(api.output(context, i, sizes, n_dimensions, &value)) || !keep(api.data(value, &data)))
            return {};
        return {(Number*)data, n_rows, n_columns};
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
    // C++'s own new and delete would need its library, and that is not linked.
    static_assert(std::is_trivially_destructible_v<Kernel>);

    Described() {
        using namespace onnxruntime;
        name = [](const CustomOp*) { return Operator::NAME; };
        provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU
        input_type = [](const CustomOp*, size_t i) { return Operator::INPUTS[i]; };
        n_inputs = [](const CustomOp*) { return sizeof Operator::INPUTS / sizeof *Operator::INPUTS; };
        output_type = [](const CustomOp*, size_t i) { return Operator::OUTPUTS[i]; };
        n_outputs = [](const CustomOp*) { return sizeof Operator::OUTPUTS / sizeof *Operator::OUTPUTS; };
        input_characteristic = [](const CustomOp*, size_t i) { return i < Operator::N_REQUIRED ? REQUIRED : OPTIONAL; };
        output_characteristic = [](const CustomOp*, size_t) { return REQUIRED; };
        input_memory = [](const CustomOp*, size_t) { return 0; };
        first_version = [](const CustomOp*) { return 1; };
        last_version = [](const CustomOp*) { return 1; };
        destroy = [](void* kernel) { free(kernel); };
        create_kernel_or_fail = [](const CustomOp*, Api api, const KernelInfo* info, void** kernel) -> Status* {
            const Functions functions{api};
            if (!kernels()) return functions.failed(FAIL, "no kernels of rankrt run on this processor");
            Attributes attributes{functions, info};
            void* memory = malloc(sizeof(Kernel));
            if (!memory) return functions.failed(FAIL, "out of memory");
            *kernel = new (memory) Kernel{functions, Operator{attributes}};
            return attributes.failure;
        };
        compute_or_fail = [](void* kernel, Context* context) -> Status* {
            auto* of = (Kernel*)kernel;
            Run run{of->api, context};
            of->of.compute(run);
            return run.failure;
        };
    }
};
