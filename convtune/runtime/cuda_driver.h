/* NVIDIA's driver as the launcher uses it, loaded at the first call, and its errors in words. */
#pragma once
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>

#ifdef CONVTUNE_CUDA_H /* by a test, which compares what follows with NVIDIA's own declarations */
#include CONVTUNE_CUDA_H
#else
typedef int CUresult, CUdevice, CUdevice_attribute, CUfunction_attribute, CUjit_option;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
enum {
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NO_DEVICE = 100,
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_JIT_ERROR_LOG_BUFFER = 5,
    CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,
};
#endif

#define DRIVER(F)                                                                                              \
    F(cuInit, unsigned)                                                                                        \
    F(cuDriverGetVersion, int *)                                                                               \
    F(cuGetErrorName, CUresult, const char **)                                                                 \
    F(cuGetErrorString, CUresult, const char **)                                                               \
    F(cuDeviceGetCount, int *)                                                                                 \
    F(cuDeviceGet, CUdevice *, int)                                                                            \
    F(cuDeviceGetName, char *, int, CUdevice)                                                                  \
    F(cuDeviceGetAttribute, int *, CUdevice_attribute, CUdevice)                                               \
    F(cuDevicePrimaryCtxRetain, CUcontext *, CUdevice)                                                         \
    F(cuDevicePrimaryCtxRelease_v2, CUdevice)                                                                  \
    F(cuCtxPushCurrent_v2, CUcontext)                                                                          \
    F(cuCtxPopCurrent_v2, CUcontext *)                                                                         \
    F(cuModuleLoadDataEx, CUmodule *, const void *, unsigned, CUjit_option *, void **)                         \
    F(cuModuleUnload, CUmodule)                                                                                \
    F(cuModuleGetFunction, CUfunction *, CUmodule, const char *)                                               \
    F(cuFuncSetAttribute, CUfunction, CUfunction_attribute, int)                                               \
    F(cuLaunchKernel, CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,        \
      CUstream, void **, void **)                                                                              \
    F(cuMemAlloc_v2, CUdeviceptr *, size_t)                                                                    \
    F(cuMemFree_v2, CUdeviceptr)                                                                               \
    F(cuMemcpyHtoD_v2, CUdeviceptr, const void *, size_t)                                                      \
    F(cuMemcpyDtoH_v2, void *, CUdeviceptr, size_t)                                                            \
    F(cuMemsetD8_v2, CUdeviceptr, unsigned char, size_t)                                                       \
    F(cuEventCreate, CUevent *, unsigned)                                                                      \
    F(cuEventRecord, CUevent, CUstream)                                                                        \
    F(cuEventSynchronize, CUevent)                                                                             \
    F(cuEventElapsedTime, float *, CUevent, CUevent)                                                           \
    F(cuEventDestroy_v2, CUevent)

static struct {
#define MEMBER(name, ...) CUresult (*name)(__VA_ARGS__);
    DRIVER(MEMBER)
    void *library;
} cuda;

void convtune_set_error(const char *kind, const char **parts, int num_parts);

__attribute__((format(printf, 2, 3))) static int fail(const char *kind, const char *format, ...) {
    char text[768];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    const char *parts[] = {text};
    convtune_set_error(kind, parts, 1);
    return -1;
}

/* Says why a call of the driver failed. The worker that measures knows a MemoryError, and the NoGpuError of a GPU that
 * cannot be used at all, from other errors. */
static int refuse(const char *kind, CUresult error, const char *what) {
    const char *name = NULL, *text = NULL;
    cuda.cuGetErrorName(error, &name);
    cuda.cuGetErrorString(error, &text);
    return fail(error == CUDA_ERROR_OUT_OF_MEMORY ? "MemoryError" : kind, "%s: %s (%s)", what,
                name ? name : "an error unknown to this driver", text ? text : "no text");
}

#define TRY_OR(kind, call, ...)                                                                                \
    do {                                                                                                       \
        CUresult error_ = cuda.call;                                                                           \
        if (error_) {                                                                                          \
            char what_[384];                                                                                   \
            snprintf(what_, sizeof what_, __VA_ARGS__);                                                        \
            return refuse(kind, error_, what_);                                                                \
        }                                                                                                      \
    } while (0)
#define TRY(call, ...) TRY_OR("CudaError", call, __VA_ARGS__)

static int load_driver(void) {
    if (!cuda.library) {
        void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (!library) return fail("NoGpuError", "this kernel needs an NVIDIA GPU and its driver: %s", dlerror());
#define FIND(name, ...)                                                                                        \
    if (!(*(void **)&cuda.name = dlsym(library, #name)))                                                       \
        return fail("NoGpuError", "the NVIDIA driver is too old: it has no %s", #name);
        DRIVER(FIND)
        cuda.library = library;
    }
    CUresult error = cuda.cuInit(0);
    if (error == CUDA_ERROR_NO_DEVICE) return fail("NoGpuError", "this kernel needs an NVIDIA GPU; the driver sees none");
    return error ? refuse("NoGpuError", error, "the NVIDIA driver does not start") : 0;
}

#ifdef CONVTUNE_CUDA_H
#define COMPARE(name, ...)                                                                                     \
    _Static_assert(__builtin_types_compatible_p(CUresult(__VA_ARGS__), __typeof__(name)), "not NVIDIA's " #name);
DRIVER(COMPARE)
#endif
