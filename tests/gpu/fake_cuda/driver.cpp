// libcuda and libnvidia-ml without a GPU: what rankrt asks the driver, and what the provider links of it.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "log.h"
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* v) {
    *v = 13000;
    return 0;
}
int cuDeviceGetCount(int* n) {
    *n = 1;
    return 0;
}
int cuDeviceGet(int* d, int i) {
    *d = i;
    return 0;
}
int cuDeviceGetName(char* n, int size, int) {
    snprintf(n, size, "NVIDIA H100 80GB HBM3 (fake)");
    return 0;
}
int cuDeviceGetAttribute(int* v, int a, int) {
    int sm = claimed_sm();
    *v = a == 75 ? sm / 10 : a == 76 ? sm % 10 : 1;
    return 0;
}
int cuDeviceTotalMem_v2(size_t* n, int) {
    *n = 80ull << 30;
    return 0;
}
int cuGetErrorString(int, const char** s) {
    *s = "fake";
    return 0;
}
int cuDevicePrimaryCtxRetain(void** c, int) {
    *c = (void*)16;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxPushCurrent_v2(void*) { return 0; }
int cuCtxPopCurrent_v2(void**) { return 0; }
int cuMemGetInfo_v2(size_t* f, size_t* t) {
    *t = 80ull << 30;
    *f = 79ull << 30;
    return 0;
}
int cuTensorMapEncodeTiled(...) { return 0; }
int nvmlInit_v2() { return 0; }
int nvmlSystemGetDriverVersion(char* s, unsigned n) {
    snprintf(s, n, "580.159.04");
    return 0;
}
}
