// libcublas and libcublasLt without a GPU: products are logged and not computed.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "log.h"

static float half(uint16_t h) {
    int e = (h >> 10) & 31, s = h >> 15, m = h & 1023;
    float v = e ? (1 + m / 1024.f) : m / 1024.f;
    int x = e ? e - 15 : -14;
    while (x > 0) v *= 2, --x;
    while (x < 0) v /= 2, ++x;
    return s ? -v : v;
}
static float scalar(const void* p, int compute) {
    if (compute == 64 || compute == 65) return half(*(const uint16_t*)p);
    return *(const float*)p;
}
static thread_local int mode_ = 0;
extern "C" {
int cublasCreate_v2(void** h) {
    *h = malloc(64);
    return 0;
}
int cublasDestroy_v2(void* h) {
    free(h);
    return 0;
}
int cublasSetStream_v2(void*, void*) { return 0; }
int cublasSetMathMode(void*, int m) {
    mode_ = m;
    return 0;
}
int cublasGetMathMode(void*, int* m) {
    *m = mode_;
    return 0;
}
const char* cublasGetStatusName(int) { return "fake"; }
const char* cublasGetStatusString(int) { return "fake"; }
int cublasGemmEx(void*, int ta, int tb, int m, int n, int k, const void* al, const void*, int at, int lda, const void*,
                 int bt, int ldb, const void* be, void*, int ct, int ldc, int compute, int algo) {
    say("GEMM %c%c m %d n %d k %d types %d,%d,%d compute %d algo %d beta %g math %d", "NTC"[ta], "NTC"[tb], m, n, k, at,
        bt, ct, compute, algo, scalar(be, compute), mode_);
    return 0;
}
int cublasSgemm_v2(void*, int ta, int tb, int m, int n, int k, const float*, const float*, int, const float*, int,
                   const float* be, float*, int) {
    say("SGEMM %c%c m %d n %d k %d beta %g math %d", "NTC"[ta], "NTC"[tb], m, n, k, *be, mode_);
    return 0;
}
int cublasGemmStridedBatchedEx(void*, int ta, int tb, int m, int n, int k, const void*, const void*, int at, int,
                               long long, const void*, int bt, int, long long, const void*, void*, int ct, int,
                               long long, int batch, int compute, int algo) {
    say("BATCHGEMM %c%c m %d n %d k %d batch %d types %d,%d,%d compute %d", "NTC"[ta], "NTC"[tb], m, n, k, batch, at,
        bt, ct, compute);
    return 0;
}
int cublasSgemmStridedBatched(void*, int ta, int tb, int m, int n, int k, const float*, const float*, int, long long,
                              const float*, int, long long, const float*, float*, int, long long, int batch) {
    say("BATCHSGEMM %c%c m %d n %d k %d batch %d math %d", "NTC"[ta], "NTC"[tb], m, n, k, batch, mode_);
    return 0;
}
int cublasLtCreate(void** h) {
    *h = malloc(64);
    return 0;
}
int cublasLtDestroy(void* h) {
    free(h);
    return 0;
}
int cublasLtMatrixLayoutCreate(void** d, int t, uint64_t r, uint64_t c, int64_t ld) {
    *d = malloc(64);
    say("LT layout type %d %llux%llu ld %lld", t, (unsigned long long)r, (unsigned long long)c, (long long)ld);
    return 0;
}
int cublasLtMatmulDescCreate(void** d, int c, int s) {
    *d = malloc(64);
    say("LT desc compute %d scale %d", c, s);
    return 0;
}
int cublasLtMatmulDescSetAttribute(void*, int a, const void* v, size_t n) {
    say("LT set %d = %lld", a, n >= 4 ? (long long)*(const int*)v : -1LL);
    return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, char* result, int* n) {
    memset(result, 0, 64);
    *n = 1;
    return 0;
}
int cublasLtMatmul(...) {
    say("LT MATMUL");
    return 0;
}
#define OK(name) \
    int name(...) { return 0; }
#define CREATED(name)         \
    int name(void** d, ...) { \
        *d = malloc(64);      \
        return 0;             \
    }
CREATED(cublasLtMatmulPreferenceCreate)
CREATED(cublasLtMatrixTransformDescCreate)
OK(cublasLtMatmulPreferenceDestroy) OK(cublasLtMatmulPreferenceSetAttribute) OK(cublasLtMatrixLayoutDestroy)
    OK(cublasLtMatrixLayoutSetAttribute) OK(cublasLtMatmulDescDestroy) OK(cublasLtMatmulAlgoConfigSetAttribute)
        OK(cublasLtMatmulAlgoInit) OK(cublasLtMatrixTransform) OK(cublasLtMatrixTransformDescDestroy) OK(cublasDgeam)
            OK(cublasDgemmBatched) OK(cublasDgemmStridedBatched) OK(cublasDgemm_v2) OK(cublasDgetrfBatched)
                OK(cublasDgetriBatched) OK(cublasGemmBatchedEx) OK(cublasScopy_v2) OK(cublasSgeam)
                    OK(cublasSgemmBatched) OK(cublasSgetrfBatched) OK(cublasSgetriBatched) OK(cublasSscal_v2)
}
