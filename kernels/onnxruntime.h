// The few parts of ONNX Runtime's C interface that the operators need.
//
// Its header is not in its wheel. The interface is a table of functions that only grows, so a function is known by
// its place in it. These places and layouts are those of version 17 of the interface, the first with ParallelFor.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace onnxruntime {

constexpr uint32_t VERSION = 17;

struct Status;
struct Value;
struct Shape;
struct KernelInfo;
struct Context;
struct Domain;
struct SessionOptions;

// The table; NULL where the runtime is older than the version that is asked for.
typedef void (*const* Api)();

struct ApiBase {
    Api (*get_api)(uint32_t version);
    const char* (*version)();
};

enum ErrorCode { FAIL = 1, INVALID_ARGUMENT = 2 };
enum ElementType { FLOAT = 1, UINT8 = 2, INT8 = 3, INT32 = 6 };
enum Characteristic { REQUIRED = 0, OPTIONAL = 1 };

// What an operator tells the runtime of itself, in the runtime's own layout.
struct CustomOp {
    uint32_t version = VERSION;
    void* (*create_kernel)(const CustomOp*, Api, const KernelInfo*) = nullptr;
    const char* (*name)(const CustomOp*) = nullptr;
    const char* (*provider)(const CustomOp*) = nullptr;
    ElementType (*input_type)(const CustomOp*, size_t) = nullptr;
    size_t (*n_inputs)(const CustomOp*) = nullptr;
    ElementType (*output_type)(const CustomOp*, size_t) = nullptr;
    size_t (*n_outputs)(const CustomOp*) = nullptr;
    void (*compute)(void*, Context*) = nullptr;
    void (*destroy)(void*) = nullptr;
    Characteristic (*input_characteristic)(const CustomOp*, size_t) = nullptr;
    Characteristic (*output_characteristic)(const CustomOp*, size_t) = nullptr;
    int (*input_memory)(const CustomOp*, size_t) = nullptr;
    int (*least_variadic_inputs)(const CustomOp*) = nullptr;
    int (*has_homogeneous_inputs)(const CustomOp*) = nullptr;
    int (*least_variadic_outputs)(const CustomOp*) = nullptr;
    int (*has_homogeneous_outputs)(const CustomOp*) = nullptr;
    Status* (*create_kernel_or_fail)(const CustomOp*, Api, const KernelInfo*, void**) = nullptr;
    Status* (*compute_or_fail)(void*, Context*) = nullptr;
    Status* (*infer_shape)(const CustomOp*, void*) = nullptr;
    int (*first_version)(const CustomOp*) = nullptr;
    int (*last_version)(const CustomOp*) = nullptr;
};

// The functions, each by its place in the table.
struct Functions {
    Api api;

    template <class Function>
    Function at(size_t place) const {
        return reinterpret_cast<Function>(api[place]);
    }

    Status* failed(ErrorCode code, const char* message) const {
        return at<Status* (*)(ErrorCode, const char*)>(0)(code, message);
    }
    Status* create_domain(const char* name, Domain** domain) const {
        return at<Status* (*)(const char*, Domain**)>(26)(name, domain);
    }
    Status* add_operator(Domain* domain, const CustomOp* op) const {
        return at<Status* (*)(Domain*, const CustomOp*)>(27)(domain, op);
    }
    Status* add_domain(SessionOptions* options, Domain* domain) const {
        return at<Status* (*)(SessionOptions*, Domain*)>(28)(options, domain);
    }
    Status* data(Value* value, void** data) const { return at<Status* (*)(Value*, void**)>(51)(value, data); }
    Status* n_dimensions(const Shape* shape, size_t* n) const {
        return at<Status* (*)(const Shape*, size_t*)>(61)(shape, n);
    }
    Status* dimensions(const Shape* shape, int64_t* sizes, size_t n) const {
        return at<Status* (*)(const Shape*, int64_t*, size_t)>(62)(shape, sizes, n);
    }
    Status* shape(const Value* value, Shape** shape) const {
        return at<Status* (*)(const Value*, Shape**)>(65)(value, shape);
    }
    Status* float_attribute(const KernelInfo* info, const char* name, float* value) const {
        return at<Status* (*)(const KernelInfo*, const char*, float*)>(85)(info, name, value);
    }
    Status* int_attribute(const KernelInfo* info, const char* name, int64_t* value) const {
        return at<Status* (*)(const KernelInfo*, const char*, int64_t*)>(86)(info, name, value);
    }
    Status* n_inputs(const Context* context, size_t* n) const {
        return at<Status* (*)(const Context*, size_t*)>(88)(context, n);
    }
    Status* input(const Context* context, size_t i, const Value** value) const {
        return at<Status* (*)(const Context*, size_t, const Value**)>(90)(context, i, value);
    }
    Status* output(Context* context, size_t i, const int64_t* sizes, size_t n, Value** value) const {
        return at<Status* (*)(Context*, size_t, const int64_t*, size_t, Value**)>(91)(context, i, sizes, n, value);
    }
    void release(Status* status) const { at<void (*)(Status*)>(93)(status); }
    void release(Shape* shape) const { at<void (*)(Shape*)>(99)(shape); }
    Status* parallel_for(const Context* context, void (*task)(void*, size_t), size_t n, void* of) const {
        constexpr size_t n_batches = 0;  // threads take tasks one by one
        return at<Status* (*)(const Context*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(context, task, n,
                                                                                                    n_batches, of);
    }
};

}  // namespace onnxruntime
