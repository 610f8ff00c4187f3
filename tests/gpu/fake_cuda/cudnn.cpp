// libcudnn without a GPU: handles can be had, and no graph can be built. A graph that is asked for shows in the log.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "log.h"

extern "C" {
int cudnnCreate(void** handle) {
    *handle = malloc(64);
    return 0;
}
int cudnnDestroy(void* handle) {
    free(handle);
    return 0;
}
int cudnnSetStream(void*, void*) { return 0; }
size_t cudnnGetVersion() { return 91900; }
size_t cudnnGetCudartVersion() { return 13000; }
const char* cudnnGetErrorString(int) { return "this cuDNN builds no graph"; }
void cudnnGetLastErrorString(char* text, size_t size) { strncpy(text, "this cuDNN builds no graph", size); }
int cudnnBackendCreateDescriptor(int, void** descriptor) {
    *descriptor = malloc(64);
    return 0;
}
int cudnnBackendDestroyDescriptor(void* descriptor) {
    free(descriptor);
    return 0;
}
int cudnnBackendSetAttribute(...) { return 0; }
int cudnnBackendGetAttribute(void*, int, int, int64_t, int64_t* count, void*) {
    if (count) *count = 0;
    return 0;
}
int cudnnBackendFinalize(void*) {
    say("CUDNN graph");
    return 3000;  // CUDNN_STATUS_NOT_SUPPORTED
}
int cudnnBackendExecute(...) { return 0; }
}
