/* The machine's GPUs: which image of the program suits one, and what of its memory is ours. Included by
 * cuda_launcher.c, after the program. */
#pragma once

typedef struct {
    int open;
    CUdevice device;
    CUcontext context;      /* the primary one, which other libraries use too */
    CUmodule module;
    CUfunction functions[NUM_LAUNCHES];
    CUdeviceptr memory[NUM_ARRAYS]; /* for arrays of the CPU, and workspaces; kept between calls */
    CUdeviceptr flushed;
    char name[128];
} Gpu;

static Gpu gpus[MAX_GPUS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* held during a call: workspaces are shared */
static _Atomic pid_t owner;                               /* the process whose driver this is */
static int filling = -1;                                  /* byte of fresh workspaces while verifying; -1: not verifying */

/* NVIDIA promises that code of an arch runs on later ones with the same first digits, but not to these or from them. */
static int is_tegra(int compute) { return compute == 72 || compute == 87 || compute == 110; }

/* Machine code of the GPU's own arch, else of the last one before it, else PTX. */
static const Image *suitable(int compute) {
    const Image *best = NULL;
    for (const Image *image = images; image < images + NUM_IMAGES; ++image) {
        if (image->compute > compute || (image->exact && image->compute != compute)) continue;
        if (image->is_ptx ? !best : image->compute == compute) best = image;
        else if (!image->is_ptx && image->compute / 10 == compute / 10 && !is_tegra(compute)) best = image;
    }
    return best;
}

static int load_image(Gpu *gpu, int id) {
    int major, minor, version = 0;
    TRY(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, gpu->device), "arch of GPU %d", id);
    TRY(cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, gpu->device), "arch of GPU %d", id);
    const Image *image = suitable(10 * major + minor);
    if (!image) {
        char has[256] = "";
        for (int i = 0; i < NUM_IMAGES; ++i)
            snprintf(has + strlen(has), sizeof has - strlen(has), "%s%s %s", i ? ", " : "",
                     images[i].is_ptx ? "PTX of" : "code for", images[i].name);
        return fail("CudaError", "GPU %d, %s, is sm_%d%d; this kernel has %s", id, gpu->name, major, minor, has);
    }
    char log[256] = "";
    CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    void *values[] = {log, (void *)(uintptr_t)(sizeof log - 1)};
    cuda.cuDriverGetVersion(&version);
    TRY(cuModuleLoadDataEx(&gpu->module, image->data, 2, options, values),
        "loading the %s %s on GPU %d, %s, with a driver for CUDA %d.%d%s%s", image->is_ptx ? "PTX of" : "code for",
        image->name, id, gpu->name, version / 1000, version % 1000 / 10, log[0] ? ": " : "", log);
    for (int i = 0; i < NUM_LAUNCHES; ++i) {
        unsigned shared = launches[i].dynamic_shared_bytes;
        TRY(cuModuleGetFunction(&gpu->functions[i], gpu->module, launches[i].kernel), "kernel %s", launches[i].kernel);
        if (shared)
            TRY(cuFuncSetAttribute(gpu->functions[i], CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)shared),
                "%u bytes of shared memory for kernel %s on GPU %d, %s", shared, launches[i].kernel, id, gpu->name);
    }
    return 0;
}

/* Sets up a GPU whose context is current. */
static int prepare(Gpu *gpu, int id) {
    if (load_image(gpu, id) == 0) {
        gpu->open = 1;
        return 0;
    }
    if (gpu->module) cuda.cuModuleUnload(gpu->module);
    gpu->module = NULL;
    return -1;
}

static int retain(Gpu *gpu, int id) {
    int count;
    if (load_driver() != 0) return -1;
    atomic_store(&owner, getpid());
    TRY_OR("NoGpuError", cuDeviceGetCount(&count), "counting GPUs");
    if (id >= count) return fail("NoGpuError", "there is no GPU %d: the driver sees %d", id, count);
    TRY_OR("NoGpuError", cuDeviceGet(&gpu->device, id), "GPU %d", id);
    TRY_OR("NoGpuError", cuDeviceGetName(gpu->name, sizeof gpu->name, gpu->device), "name of GPU %d", id);
    TRY_OR("NoGpuError", cuDevicePrimaryCtxRetain(&gpu->context, gpu->device), "context of GPU %d, %s", id, gpu->name);
    return 0;
}

static void leave(void) {
    CUcontext ignored;
    cuda.cuCtxPopCurrent_v2(&ignored);
    pthread_mutex_unlock(&lock);
}

/* Locks, and makes the GPU's context current until `leave`; neither where it returns NULL. */
static Gpu *enter(int id) {
    pid_t used_by = atomic_load(&owner);
    if (used_by && used_by != getpid()) {
        fail("CudaError", "process %d was forked after the GPU was used, and so cannot use it; start processes with "
             "\"spawn\", or fork before", (int)getpid());
        return NULL;
    }
    if (id < 0 || id >= MAX_GPUS) {
        fail("CudaError", "there is no GPU %d; allowed are 0 to %d", id, MAX_GPUS - 1);
        return NULL;
    }
    pthread_mutex_lock(&lock);
    Gpu *gpu = &gpus[id];
    if (gpu->context || retain(gpu, id) == 0) {
        CUresult error = cuda.cuCtxPushCurrent_v2(gpu->context);
        if (!error && (gpu->open || prepare(gpu, id) == 0)) return gpu;
        if (!error) return leave(), NULL;
        refuse("NoGpuError", error, gpu->name);
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* ---- memory ----------------------------------------------------------------------------------------- */

static int allocate(CUdeviceptr *memory, size_t bytes, const char *what) {
    if (*memory) return 0;
    TRY(cuMemAlloc_v2(memory, bytes), "%zu bytes of the GPU's memory for %s", bytes, what);
    return 0;
}

static int own(Gpu *gpu, int index) {
    CUdeviceptr memory = 0;
    if (gpu->memory[index]) return 0;
    if (allocate(&memory, arrays[index].bytes + 2 * ZONE_BYTES, arrays[index].name) != 0) return -1;
    gpu->memory[index] = memory + ZONE_BYTES;
    return 0;
}

static void free_memory(Gpu *gpu) {
    for (int i = 0; i < NUM_ARRAYS; ++i)
        if (gpu->memory[i]) cuda.cuMemFree_v2(gpu->memory[i] - ZONE_BYTES), gpu->memory[i] = 0;
    if (gpu->flushed) cuda.cuMemFree_v2(gpu->flushed), gpu->flushed = 0;
}

/* Around each array of ours, a zone that nobody may write, and that nobody can read without a trace. */
static int mark_zones(const Gpu *gpu) {
    for (int i = 0; i < NUM_ARRAYS; ++i) {
        if (!gpu->memory[i]) continue;
        TRY(cuMemsetD8_v2(gpu->memory[i] - ZONE_BYTES, ZONE_BYTE, ZONE_BYTES), "filling memory");
        TRY(cuMemsetD8_v2(gpu->memory[i] + arrays[i].bytes, ZONE_BYTE, ZONE_BYTES), "filling memory");
        if (i >= NUM_PARAMETERS)
            TRY(cuMemsetD8_v2(gpu->memory[i], (unsigned char)filling, arrays[i].bytes), "filling memory");
    }
    return 0;
}

static int check_zones(const Gpu *gpu) {
    unsigned char zones[2 * ZONE_BYTES];
    for (int i = 0; i < NUM_ARRAYS; ++i) {
        if (!gpu->memory[i]) continue;
        TRY(cuMemcpyDtoH_v2(zones, gpu->memory[i] - ZONE_BYTES, ZONE_BYTES), "after the kernel");
        TRY(cuMemcpyDtoH_v2(zones + ZONE_BYTES, gpu->memory[i] + arrays[i].bytes, ZONE_BYTES), "after the kernel");
        for (int k = 0; k < 2 * ZONE_BYTES; ++k) {
            if (zones[k] == ZONE_BYTE) continue;
            int before = k < ZONE_BYTES, distance = before ? ZONE_BYTES - k : k - ZONE_BYTES + 1;
            return fail("CudaError", "the kernel wrote outside %s: %d bytes %s it", arrays[i].name, distance,
                        before ? "before" : "behind");
        }
    }
    return 0;
}
