/* Runs a program of CUDA kernels through NVIDIA's driver: finds the GPU at the first call, loads the image that
 * suits it, launches the kernels in order. Compiled together with one program, whose tables are cuda_program.inc.
 * C11 and POSIX threads, Linux. The driver comes with the GPU: nothing of NVIDIA's toolkit is needed to compile or
 * to run this.
 *
 * Arrays in the GPU's memory are used where they lie; arrays in the CPU's are copied there, and y back. Everything
 * goes to the legacy default stream, so what is launched is in order with most of what other libraries launch. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda_driver.h"

#define EXPORT __attribute__((visibility("default")))

/* ---- the program ------------------------------------------------------------------------------------ */

typedef struct {
    const char *name;
    size_t bytes;
    int code, bits;         /* of an element, as in DLDataType */
} Array;

typedef struct {
    const char *kernel;
    const int *arguments;   /* indices of `arrays` */
    int num_arguments;
    unsigned grid[3], block[3], dynamic_shared_bytes;
} Launch;

typedef struct {
    const char *name;       /* such as "sm_80" */
    int compute;            /* such as 80 */
    int exact;              /* it runs on GPUs of that arch alone */
    int is_ptx;             /* the driver translates it, for this arch and all later ones */
    const char *data;
} Image;

/* Defines NUM_PARAMETERS, NUM_ARRAYS (workspaces after the parameters), NUM_LAUNCHES, NUM_IMAGES (machine code, oldest
 * first, then PTX), MOST_ARGUMENTS (of a launch), and the tables `arrays`, `launches`, `images`. */
#include "cuda_program.inc"

enum {
    MAX_GPUS = 64,
    ALIGNMENT = 64,         /* what TVM assumes of every array */
    ZONE_BYTES = 4096,      /* around each array that is ours, to see who writes outside it */
    ZONE_BYTE = 0xFF,       /* four of them are a NaN */
};

#include "cuda_gpus.h"

/* ---- arguments -------------------------------------------------------------------------------------- */

typedef struct { /* DLTensor of dlpack.h */
    char *data;
    int32_t device_type, device_id, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} Tensor;

typedef struct { /* TVMFFIAny */
    int32_t type_index, zero;
    union {
        int64_t integer;
        Tensor *tensor;
    };
} Any;

enum { TENSOR = 7, ON_CPU = 1, ON_GPU = 2, ON_CPU_PINNED = 3, ON_GPU_MANAGED = 13 };

static int on_gpu(const Tensor *tensor) {
    return tensor->device_type == ON_GPU || tensor->device_type == ON_GPU_MANAGED;
}

static int check_tensor(const Array *array, const Tensor *tensor) {
    if (!tensor || !tensor->data) return fail("ValueError", "%s is null", array->name);
    if (!on_gpu(tensor) && tensor->device_type != ON_CPU && tensor->device_type != ON_CPU_PINNED)
        return fail("ValueError", "%s is on DLPack device type %d", array->name, tensor->device_type);
    uint64_t elements = 1;
    for (int i = tensor->ndim - 1; i >= 0; --i) {
        if (tensor->strides && tensor->shape[i] != 1 && tensor->strides[i] != (int64_t)elements)
            return fail("ValueError", "%s is not C-contiguous", array->name);
        elements *= (uint64_t)tensor->shape[i];
    }
    if (tensor->code != array->code || tensor->bits * tensor->lanes != array->bits)
        return fail("ValueError", "%s has another dtype than the kernel takes", array->name);
    if (elements * (uint64_t)(array->bits / 8) != array->bytes)
        return fail("ValueError", "%s has %llu elements; the kernel takes %llu", array->name,
                    (unsigned long long)elements, (unsigned long long)(array->bytes * 8 / (size_t)array->bits));
    if (on_gpu(tensor) && ((uintptr_t)tensor->data + tensor->byte_offset) % ALIGNMENT)
        return fail("ValueError", "%s starts at no multiple of %d bytes; copy it first", array->name, ALIGNMENT);
    return 0;
}

/* Sets the GPU that has the arrays, 0 where none is on one. */
static int check_arguments(const Any *args, int num_args, int *id) {
    *id = -1;
    if (num_args != NUM_PARAMETERS)
        return fail("ValueError", "%d arguments were given; the kernel takes %d", num_args, NUM_PARAMETERS);
    for (int i = 0; i < NUM_PARAMETERS; ++i) {
        const Tensor *tensor = args[i].tensor;
        if (args[i].type_index != TENSOR) return fail("ValueError", "%s is no tensor", arrays[i].name);
        if (check_tensor(&arrays[i], tensor) != 0) return -1;
        if (!on_gpu(tensor)) continue;
        if (*id >= 0 && *id != tensor->device_id)
            return fail("ValueError", "%s is on GPU %d, another array on GPU %d", arrays[i].name, tensor->device_id, *id);
        *id = tensor->device_id;
    }
    if (*id < 0) *id = 0;
    return 0;
}

static int copy_in(Gpu *gpu, const Any *args, CUdeviceptr *addresses) {
    for (int i = 0; i < NUM_ARRAYS; ++i) {
        const Tensor *tensor = i < NUM_PARAMETERS ? args[i].tensor : NULL;
        if (tensor && on_gpu(tensor)) {
            addresses[i] = (CUdeviceptr)(uintptr_t)(tensor->data + tensor->byte_offset);
            continue;
        }
        if (own(gpu, i) != 0) return -1;
        addresses[i] = gpu->memory[i];
        /* y too while verifying: what the kernel leaves unwritten must still be what the caller put there */
        if (tensor && (i < NUM_PARAMETERS - 1 || filling >= 0))
            TRY(cuMemcpyHtoD_v2(addresses[i], tensor->data + tensor->byte_offset, arrays[i].bytes), "copying %s to GPU",
                arrays[i].name);
    }
    return filling >= 0 ? mark_zones(gpu) : 0;
}

/* y, and while verifying all arrays: a kernel must not change its inputs. This waits for the GPU. */
static int copy_out(const Gpu *gpu, const Any *args) {
    for (int i = filling >= 0 ? 0 : NUM_PARAMETERS - 1; i < NUM_PARAMETERS; ++i) {
        const Tensor *tensor = args[i].tensor;
        if (!on_gpu(tensor))
            TRY(cuMemcpyDtoH_v2(tensor->data + tensor->byte_offset, gpu->memory[i], arrays[i].bytes),
                "after the kernel, copying %s from GPU", arrays[i].name);
    }
    return filling >= 0 ? check_zones(gpu) : 0;
}

/* ---- calls ------------------------------------------------------------------------------------------ */

static int launch_all(const Gpu *gpu, CUdeviceptr *addresses) {
    for (int i = 0; i < NUM_LAUNCHES; ++i) {
        const Launch *l = &launches[i];
        void *parameters[MOST_ARGUMENTS];
        for (int k = 0; k < l->num_arguments; ++k) parameters[k] = &addresses[l->arguments[k]];
        TRY(cuLaunchKernel(gpu->functions[i], l->grid[0], l->grid[1], l->grid[2], l->block[0], l->block[1], l->block[2],
                           l->dynamic_shared_bytes, NULL, parameters, NULL),
            "launching %s with %u x %u x %u blocks of %u x %u x %u threads on %s", l->kernel, l->grid[0], l->grid[1],
            l->grid[2], l->block[0], l->block[1], l->block[2], gpu->name);
    }
    return 0;
}

EXPORT int __tvm_ffi_main(void *handle, const Any *args, int32_t num_args, void *result) {
    (void)handle, (void)result;
    int id;
    if (check_arguments(args, num_args, &id) != 0) return -1;
    Gpu *gpu = enter(id);
    if (!gpu) return -1;
    CUdeviceptr addresses[NUM_ARRAYS];
    int status = copy_in(gpu, args, addresses);
    if (status == 0) status = launch_all(gpu, addresses);
    if (status == 0) status = copy_out(gpu, args);
    leave();
    return status;
}

/* Fills twice the GPU's L2 cache, where CONVTUNE_FLUSH_L2=1 asks for it. */
static int flush(Gpu *gpu) {
    int bytes;
    TRY(cuDeviceGetAttribute(&bytes, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, gpu->device), "L2 cache of %s", gpu->name);
    size_t twice = 2 * (size_t)bytes;
    if (twice == 0) return 0;
    if (allocate(&gpu->flushed, twice, "flushing the L2 cache") != 0) return -1;
    TRY(cuMemsetD8_v2(gpu->flushed, 0, twice), "flushing the L2 cache");
    return 0;
}

static int time_once(Gpu *gpu, CUdeviceptr *addresses, CUevent *events, int number, int flushing, double *seconds) {
    float milliseconds;
    double sum = 0;
    int runs = flushing ? number : 1; /* that are timed one by one */
    for (int run = 0; run < runs; ++run) {
        if (flushing && flush(gpu) != 0) return -1;
        TRY(cuEventRecord(events[0], NULL), "timing");
        for (int i = 0; i < number / runs; ++i)
            if (launch_all(gpu, addresses) != 0) return -1;
        TRY(cuEventRecord(events[1], NULL), "timing");
        TRY(cuEventSynchronize(events[1]), "timing %s on %s", launches[0].kernel, gpu->name);
        TRY(cuEventElapsedTime(&milliseconds, events[0], events[1]), "timing");
        sum += 1e-3 * (double)milliseconds;
    }
    *seconds = sum / number;
    return 0;
}

static int time_all(Gpu *gpu, const Any *args, CUevent *events, int number, int repeat, double *seconds) {
    const char *text = getenv("CONVTUNE_FLUSH_L2");
    int flushing = text && strcmp(text, "1") == 0;
    if (text && *text && !flushing && strcmp(text, "0") != 0)
        return fail("ValueError", "CONVTUNE_FLUSH_L2 is %.64s; allowed are 0 and 1", text);
    CUdeviceptr addresses[NUM_ARRAYS];
    if (copy_in(gpu, args, addresses) != 0) return -1;
    for (int r = 0; r < repeat; ++r)
        if (time_once(gpu, addresses, events, number, flushing, &seconds[r]) != 0) return -1;
    return copy_out(gpu, args);
}

/* Seconds per call on the GPU, by its own clock, without copies: the mean of `number` calls, `repeat` times. */
EXPORT int convtune_time(void *kernel, const Any *args, int num_args, int number, int repeat, double *seconds) {
    (void)kernel;
    int id;
    if (check_arguments(args, num_args, &id) != 0) return -1;
    Gpu *gpu = enter(id);
    if (!gpu) return -1;
    CUevent events[2] = {NULL, NULL};
    int status = 0;
    for (int i = 0; i < 2 && status == 0; ++i) {
        CUresult error = cuda.cuEventCreate(&events[i], 0);
        if (error) status = refuse("CudaError", error, "timing");
    }
    if (status == 0) status = time_all(gpu, args, events, number, repeat, seconds);
    for (int i = 0; i < 2; ++i)
        if (events[i]) cuda.cuEventDestroy_v2(events[i]);
    leave();
    return status;
}

/* As the runtime's: from now on, workspaces are full of that byte before each call; -1: they hold what they held.
 * Meanwhile calls check that the kernel writes nothing but its arrays, and bring back all of them. */
EXPORT void convtune_fill_workspace(int byte) {
    pthread_mutex_lock(&lock);
    filling = byte;
    pthread_mutex_unlock(&lock);
}

/* Gives back all of the GPU's memory that is kept between calls. */
EXPORT void convtune_release_workspace(void) {
    for (int id = 0; id < MAX_GPUS; ++id) {
        Gpu *gpu = gpus[id].open && atomic_load(&owner) == getpid() ? enter(id) : NULL;
        if (gpu) free_memory(gpu), leave();
    }
}

/* ---- the caller's memory on a GPU ------------------------------------------------------------------- */

EXPORT int convtune_gpu_allocate(int id, size_t bytes, CUdeviceptr *memory) {
    Gpu *gpu = enter(id);
    if (!gpu) return -1;
    *memory = 0;
    int status = allocate(memory, bytes, "an array");
    leave();
    return status;
}

EXPORT int convtune_gpu_free(int id, CUdeviceptr memory) {
    Gpu *gpu = enter(id);
    if (!gpu) return -1;
    CUresult error = cuda.cuMemFree_v2(memory);
    leave();
    return error ? refuse("CudaError", error, "freeing the GPU's memory") : 0;
}

EXPORT int convtune_gpu_upload(int id, CUdeviceptr to, const void *from, size_t bytes) {
    Gpu *gpu = enter(id);
    if (!gpu) return -1;
    CUresult error = cuda.cuMemcpyHtoD_v2(to, from, bytes);
    leave();
    return error ? refuse("CudaError", error, "copying to the GPU") : 0;
}

EXPORT int convtune_gpu_download(int id, void *to, CUdeviceptr from, size_t bytes) {
    Gpu *gpu = enter(id);
    if (!gpu) return -1;
    CUresult error = cuda.cuMemcpyDtoH_v2(to, from, bytes);
    leave();
    return error ? refuse("CudaError", error, "copying from the GPU") : 0;
}
