// libcudart without a GPU: memory is the host's, copies are memcpy, kernels are logged and do nothing. It shows what
// ONNX Runtime's CUDA provider asks of a GPU, on a host that has none. Its scores mean nothing.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#include "log.h"

namespace {
std::recursive_mutex lock_;
std::unordered_map<const void*, std::string>& names() {
    static auto* m = new std::unordered_map<const void*, std::string>;
    return *m;
}
std::map<uintptr_t, size_t>& blocks() {
    static auto* m = new std::map<uintptr_t, size_t>;
    return *m;
}
size_t live_, peak_;
void* take(size_t n, const char* what) {
    void* p = nullptr;
    if (posix_memalign(&p, 512, n ? n : 512)) return nullptr;
    std::lock_guard<std::recursive_mutex> g(lock_);
    blocks()[(uintptr_t)p] = n;
    live_ += n;
    peak_ = std::max(peak_, live_);
    say("%s %zu live %zu peak %zu", what, n, live_, peak_);
    return p;
}
void give(void* p) {
    if (!p) return;
    std::lock_guard<std::recursive_mutex> g(lock_);
    auto it = blocks().find((uintptr_t)p);
    if (it != blocks().end()) {
        live_ -= it->second;
        blocks().erase(it);
    }
    free(p);
}
bool is_device(const void* p) {
    std::lock_guard<std::recursive_mutex> g(lock_);
    auto it = blocks().upper_bound((uintptr_t)p);
    if (it == blocks().begin()) return false;
    --it;
    return (uintptr_t)p < it->first + it->second;
}
void launch(const void* f, dim3 g, dim3 b, size_t smem, void* stream, const char* how) {
    std::string name;
    {
        std::lock_guard<std::recursive_mutex> l(lock_);
        auto it = names().find(f);
        if (it != names().end()) name = it->second;
    }
    say("KERNEL %s %u,%u,%u %u,%u,%u smem %zu stream %p %s", name.empty() ? "?" : name.c_str(), g.x, g.y, g.z, b.x, b.y,
        b.z, smem, stream, how);
}
struct Config {
    dim3 g, b;
    size_t s;
    void* st;
};
thread_local Config pending;
thread_local int device_ = 0;
thread_local bool capturing_ = false;
void* token() {
    static std::atomic<uintptr_t> n{0x1000};
    return (void*)(n += 16);
}
}  // namespace

extern "C" {
// registration
void** __cudaRegisterFatBinary(void*) { return (void**)malloc(64); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
    std::lock_guard<std::recursive_mutex> g(lock_);
    names()[host] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* f) {
    *k = (cudaKernel_t)f;
    return cudaSuccess;
}
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, struct CUstream_st* st) {
    pending = {g, b, s, st};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* s, void* st) {
    *g = pending.g;
    *b = pending.b;
    *s = pending.s;
    *(void**)st = pending.st;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void**, size_t s, cudaStream_t st) {
    launch((const void*)k, g, b, s, st, "");
    return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void**, size_t s, cudaStream_t st) {
    launch(f, g, b, s, st, "");
    return cudaSuccess;
}
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 g, dim3 b, void**, size_t s, cudaStream_t st) {
    launch(f, g, b, s, st, "cooperative");
    return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void**) {
    launch(f, c->gridDim, c->blockDim, c->dynamicSmemBytes, c->stream, "ex");
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t f, void* d) {
    say("HOSTFUNC");
    f(d);
    return cudaSuccess;
}
// device
cudaError_t cudaGetDeviceCount(int* n) {
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* d) {
    *d = device_;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int d) {
    device_ = d;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* v) {
    *v = 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* v) {
    *v = 13000;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* p, int) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "NVIDIA H100 80GB HBM3 (fake)");
    p->major = claimed_sm() / 10;
    p->minor = claimed_sm() % 10;
    p->totalGlobalMem = 80ull << 30;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = 232448;
    p->sharedMemPerMultiprocessor = 233472;
    p->regsPerBlock = 65536;
    p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->multiProcessorCount = 132;
    p->l2CacheSize = 50 << 20;
    p->unifiedAddressing = 1;
    p->concurrentKernels = 1;
    p->asyncEngineCount = 3;
    p->totalConstMem = 65536;
    p->maxBlocksPerMultiProcessor = 32;
    p->memoryPoolsSupported = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, enum cudaDeviceAttr a, int) {
    struct cudaDeviceProp p;
    cudaGetDeviceProperties(&p, 0);
    switch (a) {
        case cudaDevAttrMaxThreadsPerBlock:
            *v = 1024;
            break;
        case cudaDevAttrMultiProcessorCount:
            *v = 132;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *v = 49152;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *v = 232448;
            break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *v = 233472;
            break;
        case cudaDevAttrComputeCapabilityMajor:
            *v = p.major;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *v = p.minor;
            break;
        case cudaDevAttrWarpSize:
            *v = 32;
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *v = 2048;
            break;
        case cudaDevAttrL2CacheSize:
            *v = 50 << 20;
            break;
        case cudaDevAttrMaxGridDimX:
            *v = 2147483647;
            break;
        default:
            *v = 1;
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    say("SYNC device");
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
    *t = 80ull << 30;
    *f = *t - live_;
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "fake"; }
const char* cudaGetErrorString(cudaError_t) { return "fake"; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* a, const void*) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 64;
    a->maxDynamicSharedSizeBytes = 232448;
    a->binaryVersion = claimed_sm();
    a->ptxVersion = claimed_sm();
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, enum cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, enum cudaFuncAttribute, int, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int, size_t, unsigned) {
    *n = 2;
    return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** f, unsigned, unsigned long long,
                                             enum cudaDriverEntryPointQueryResult* r) {
    *f = (void*)token;
    if (r) *r = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
cudaError_t cudaLibraryLoadData(cudaLibrary_t* l, const void*, enum cudaJitOption*, void**, unsigned,
                                enum cudaLibraryOption*, void**, unsigned) {
    *l = (cudaLibrary_t)token();
    return cudaSuccess;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t* k, cudaLibrary_t, const char* name) {
    void* t = token();
    {
        std::lock_guard<std::recursive_mutex> g(lock_);
        names()[t] = name;
    }
    *k = (cudaKernel_t)t;
    return cudaSuccess;
}
cudaError_t cudaLibraryUnload(cudaLibrary_t) { return cudaSuccess; }
// memory
cudaError_t cudaMalloc(void** p, size_t n) {
    *p = take(n, "MALLOC");
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* p) {
    say("FREE");
    give(p);
    return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t) {
    give(p);
    return cudaSuccess;
}
cudaError_t cudaMallocFromPoolAsync(void** p, size_t n, cudaMemPool_t, cudaStream_t) {
    *p = take(n, "POOLMALLOC");
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void** p, size_t n) {
    say("PINNED %zu", n);
    return posix_memalign(p, 512, n) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) { return cudaMallocHost(p, n); }
cudaError_t cudaFreeHost(void* p) {
    free(p);
    return cudaSuccess;
}
static const char* kind(cudaMemcpyKind k) {
    static const char* n[] = {"H2H", "H2D", "D2H", "D2D", "default"};
    return n[k];
}
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, enum cudaMemcpyKind k) {
    say("COPY sync %s %zu", kind(k), n);
    memcpy(d, s, n);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, enum cudaMemcpyKind k, cudaStream_t st) {
    say("COPY async %s %zu stream %p", kind(k), n, (void*)st);
    memcpy(d, s, n);
    return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, enum cudaMemcpyKind k,
                              cudaStream_t st) {
    say("COPY2D %s %zux%zu stream %p", kind(k), w, h, (void*)st);
    for (size_t i = 0; i < h; ++i) memcpy((char*)d + i * dp, (const char*)s + i * sp, w);
    return cudaSuccess;
}
cudaError_t cudaMemcpyFromSymbol(void* d, const void*, size_t n, size_t, enum cudaMemcpyKind) {
    memset(d, 0, n);
    return cudaSuccess;
}
cudaError_t cudaMemset(void* d, int v, size_t n) {
    say("MEMSET sync %zu", n);
    memset(d, v, n);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t st) {
    say("MEMSET async %zu stream %p", n, (void*)st);
    memset(d, v, n);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* a, const void* p) {
    memset(a, 0, sizeof *a);
    a->type = is_device(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    a->devicePointer = (void*)p;
    return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* p, const struct cudaMemPoolProps*) {
    *p = (cudaMemPool_t)token();
    return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, enum cudaMemPoolAttr, void* v) {
    memset(v, 0, 8);
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, enum cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
// streams and events
cudaError_t cudaStreamCreate(cudaStream_t* s) {
    *s = (cudaStream_t)token();
    say("STREAM create %p", (void*)*s);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned f) {
    *s = (cudaStream_t)token();
    say("STREAM create %p flags %u", (void*)*s, f);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    say("STREAM destroy %p", (void*)s);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    say("SYNC stream %p", (void*)s);
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t, unsigned) {
    say("WAIT stream %p", (void*)s);
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, enum cudaStreamCaptureStatus* c) {
    *c = capturing_ ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode) {
    capturing_ = true;
    say("CAPTURE begin %p", (void*)s);
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* g) {
    capturing_ = false;
    *g = (cudaGraph_t)token();
    say("CAPTURE end");
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t, unsigned long long) {
    *e = (cudaGraphExec_t)token();
    say("GRAPH instantiate");
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
    say("GRAPH launch");
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) {
    *e = (cudaEvent_t)token();
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
    *e = (cudaEvent_t)token();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* t, cudaEvent_t, cudaEvent_t) {
    *t = 1;
    return cudaSuccess;
}
}
