/* A libcuda.so.1 for tests: memory and copies on the CPU, kernels by emulation, time that counts launches.
 *
 * An image is text: a line that names it, then for each kernel "name library grid block shared": its emulation as
 * convtune.cuda.emulation builds it ("-": it does nothing), and what it must be launched with.
 *
 *   FAKE_CUDA_ARCH     of the GPUs, such as 86            FAKE_CUDA_GPUS     how many there are
 *   FAKE_CUDA_MEMORY   bytes that one may allocate        FAKE_CUDA_LOG      a file that gets a line for each call
 *   FAKE_CUDA_FAIL     "cuLaunchKernel=719@2": error 719 from the second call on; several with commas
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef CONVTUNE_CUDA_H /* the compiler then compares what follows with NVIDIA's own declarations */
#include CONVTUNE_CUDA_H
#define OWN
#else
#define OWN __attribute__((visibility("default")))
typedef int CUresult, CUdevice, CUdevice_attribute, CUfunction_attribute, CUjit_option;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
#endif

struct CUmod_st { const char *text; };
struct CUfunc_st { char name[64], library[512]; unsigned grid[3], block[3], shared, arguments, most_shared; };
struct CUevent_st { double milliseconds; };

enum { HEADER = 256 };
#define TAG (1ull << 60) /* so that the CPU cannot use a GPU's address by mistake */

static double clock_ms;
static size_t allocated;
static int started, contexts, context;

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

static void note(const char *format, ...) {
    const char *path = getenv("FAKE_CUDA_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    va_list values;
    va_start(values, format);
    vfprintf(file, format, values);
    va_end(values);
    fputc('\n', file);
    fclose(file);
}

/* The error that this call must give, by FAKE_CUDA_FAIL; else 3 before cuInit. */
static int failure(const char *function, int *calls) {
    char text[256] = "";
    ++*calls;
    strncat(text, getenv("FAKE_CUDA_FAIL") ? getenv("FAKE_CUDA_FAIL") : "", sizeof text - 1);
    for (char *rest, *entry = strtok_r(text, ",", &rest); entry; entry = strtok_r(NULL, ",", &rest)) {
        char *code = strchr(entry, '='), *at = strchr(entry, '@');
        *code++ = 0;
        if (strcmp(entry, function) == 0 && *calls >= (at ? atoi(at + 1) : 1)) return atoi(code);
    }
    return !started && strcmp(function, "cuInit") != 0 ? 3 : 0;
}

#define CALL                                                                                                   \
    static int calls;                                                                                          \
    int error = failure(__func__, &calls);                                                                     \
    if (error) return error
#define CALL_IN_CONTEXT                                                                                        \
    CALL;                                                                                                      \
    if (!contexts) return note("%s without a context", __func__), 201

OWN CUresult cuInit(unsigned flags) {
    CALL;
    started = 1;
    return (int)flags;
}
OWN CUresult cuDriverGetVersion(int *version) { return *version = 13000, 0; }
OWN CUresult cuGetErrorName(CUresult error, const char **name) {
    static _Thread_local char text[32];
    snprintf(text, sizeof text, error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_%d", (int)error);
    return *name = text, 0;
}
OWN CUresult cuGetErrorString(CUresult error, const char **text) {
    return *text = error == 2 ? "out of memory" : "as the test wants", 0;
}
OWN CUresult cuDeviceGetCount(int *count) {
    CALL;
    return *count = (int)number("FAKE_CUDA_GPUS", 1), 0;
}
OWN CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    CALL;
    return *device = ordinal, 0;
}
OWN CUresult cuDeviceGetName(char *name, int bytes, CUdevice device) {
    CALL;
    snprintf(name, (size_t)bytes, "Fake GPU %d", device);
    return 0;
}
OWN CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    CALL;
    (void)device;
    static const int facts[][2] = {{16, 108}, {13, 1410000}, {36, 1215000}, {37, 5120}, {38, 40 << 20}, {81, 167936},
                                   {97, 166912}, {111, 1024}, {82, 65536}, {39, 2048}, {106, 32}};
    int arch = (int)number("FAKE_CUDA_ARCH", 80);
    *value = attribute == 75 ? arch / 10 : arch % 10;
    for (size_t i = 0; i < sizeof facts / sizeof *facts; ++i)
        if (facts[i][0] == (int)attribute) *value = facts[i][1];
    return 0;
}
OWN CUresult cuDevicePrimaryCtxRetain(CUcontext *made, CUdevice device) {
    CALL;
    note("retain %d", device);
    return *made = (CUcontext)&context, 0;
}
OWN CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    note("release %d", device);
    return 0;
}
OWN CUresult cuCtxPushCurrent_v2(CUcontext pushed) {
    CALL;
    contexts += pushed == (CUcontext)&context;
    return 0;
}
OWN CUresult cuCtxPopCurrent_v2(CUcontext *popped) {
    CALL_IN_CONTEXT;
    --contexts;
    return *popped = (CUcontext)&context, 0;
}
OWN CUresult cuModuleLoadDataEx(CUmodule *made, const void *image, unsigned count, CUjit_option *options, void **values) {
    CALL_IN_CONTEXT;
    const char *text = image;
    note("load %.*s", (int)strcspn(text, "\n"), text);
    if (strncmp(text, "BROKEN", 6) == 0) {
        for (unsigned i = 0; i < count; ++i)
            if (options[i] == 5) strcpy(values[i], "line 1: not PTX");
        return 218;
    }
    *made = malloc(sizeof **made);
    (*made)->text = text;
    return 0;
}
OWN CUresult cuModuleUnload(CUmodule module) { return free(module), note("unload"), 0; }
OWN CUresult cuModuleGetFunction(CUfunction *made, CUmodule module, const char *name) {
    CALL_IN_CONTEXT;
    for (const char *line = module->text; line; line = strchr(line, '\n')) {
        struct CUfunc_st f = {.most_shared = 48 << 10};
        unsigned *g = f.grid, *b = f.block;
        line += *line == '\n';
        int found = sscanf(line, "%63s %511s %u %u %u %u %u %u %u %u", f.name, f.library, g, g + 1, g + 2, b, b + 1,
                           b + 2, &f.shared, &f.arguments);
        if (found != 10 || strcmp(f.name, name) != 0) continue;
        *made = malloc(sizeof f);
        **made = f;
        return 0;
    }
    return 500;
}
OWN CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    CALL_IN_CONTEXT;
    note("attribute %d of %s = %d", (int)attribute, function->name, value);
    if (attribute == 8) function->most_shared = (unsigned)value;
    return 0;
}

typedef struct { /* Options of convtune/cuda/emulation/launcher.h */
    int32_t order, threads;
    uint64_t seed;
    int64_t blocks;
    int32_t scratch_byte, problem_bytes;
} Options;

static int emulate(const struct CUfunc_st *f, void **parameters) {
    char problem[512] = "", counts[4096], *data[64];
    Options options = {.threads = 1, .scratch_byte = -1, .problem_bytes = sizeof problem};
    void *library = dlopen(f->library, RTLD_NOW | RTLD_LOCAL);
    if (!library) return note("%s", dlerror()), 999;
    void (*run)(char *const *, const Options *, void *, char *);
    *(void **)&run = dlsym(library, "convtune_emulate");
    for (unsigned i = 0; i < f->arguments; ++i) data[i] = (char *)(uintptr_t)(*(CUdeviceptr *)parameters[i] & ~TAG);
    run(data, &options, counts, problem);
    return *problem ? note("problem: %s", problem), 719 : 0;
}

OWN CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                            unsigned shared, CUstream stream, void **parameters, void **extra) {
    CALL_IN_CONTEXT;
    unsigned given[] = {gx, gy, gz, bx, by, bz, shared}, wanted[7] = {0};
    memcpy(wanted, f->grid, sizeof f->grid), memcpy(wanted + 3, f->block, sizeof f->block), wanted[6] = f->shared;
    note("launch %s", f->name);
    clock_ms += 1;
    if (memcmp(given, wanted, sizeof given) != 0 || shared > f->most_shared || stream || extra) return 1;
    return strcmp(f->library, "-") == 0 ? 0 : emulate(f, parameters);
}
OWN CUresult cuMemAlloc_v2(CUdeviceptr *memory, size_t bytes) {
    CALL_IN_CONTEXT;
    note("allocate %zu", bytes);
    if (allocated + bytes > (size_t)number("FAKE_CUDA_MEMORY", 1 << 30)) return 2;
    char *block = aligned_alloc(HEADER, HEADER + (bytes + HEADER - 1) / HEADER * HEADER);
    memset(block, 0xEE, HEADER + bytes);
    *(size_t *)(void *)block = bytes;
    allocated += bytes;
    return *memory = (CUdeviceptr)(uintptr_t)(block + HEADER) | TAG, 0;
}
static char *real(CUdeviceptr memory) {
    if (!(memory & TAG)) note("an address of the CPU"), abort();
    return (char *)(uintptr_t)(memory & ~TAG);
}
OWN CUresult cuMemFree_v2(CUdeviceptr memory) {
    CALL_IN_CONTEXT;
    char *block = real(memory) - HEADER;
    note("free %zu", *(size_t *)(void *)block);
    allocated -= *(size_t *)(void *)block;
    return free(block), 0;
}
OWN CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    CALL_IN_CONTEXT;
    note("to GPU %zu", bytes);
    return memcpy(real(to), from, bytes), 0;
}
OWN CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    CALL_IN_CONTEXT;
    note("from GPU %zu", bytes);
    return memcpy(to, real(from), bytes), 0;
}
OWN CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char byte, size_t bytes) {
    CALL_IN_CONTEXT;
    note("fill %zu", bytes);
    clock_ms += 100;
    return memset(real(to), byte, bytes), 0;
}
OWN CUresult cuEventCreate(CUevent *event, unsigned flags) {
    CALL_IN_CONTEXT;
    return *event = calloc(1, sizeof **event), (int)flags;
}
OWN CUresult cuEventRecord(CUevent event, CUstream stream) {
    CALL_IN_CONTEXT;
    event->milliseconds = clock_ms;
    return stream != NULL;
}
OWN CUresult cuEventSynchronize(CUevent event) {
    CALL_IN_CONTEXT;
    return event == NULL;
}
#undef cuEventElapsedTime
OWN CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    CALL_IN_CONTEXT;
    return *milliseconds = (float)(end->milliseconds - start->milliseconds), 0;
}
#ifndef OLD_DRIVER
OWN CUresult cuEventDestroy_v2(CUevent event) {
    CALL_IN_CONTEXT;
    return free(event), 0;
}
#endif
