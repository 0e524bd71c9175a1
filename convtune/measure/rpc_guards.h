/* A kernel's arguments, and copies of them between fences and zones, as measure/guards.py has them. Included by
 * rpc_runner.c. */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    REPORT_BYTES = 2048,
    FENCE_BYTES = 1 << 20,  /* as guards.FENCE_BYTES; a multiple of any page's size */
};

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

enum { TENSOR = 7 };

static size_t element_bytes(const Tensor *tensor) { return (size_t)tensor->bits / 8 * tensor->lanes; }

static size_t bytes_of(const Tensor *tensor) {
    size_t bytes = element_bytes(tensor);
    for (int i = 0; i < tensor->ndim; ++i) bytes *= (size_t)tensor->shape[i];
    return bytes;
}

static void *shared_memory(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

typedef struct {
    char *memory, *body, *array;
    size_t memory_bytes, body_bytes, bytes;
} Guarded;

static void fill_words(char *from, const char *to, uint32_t word) {
    for (; from < to; from += sizeof word) memcpy(from, &word, to - from < 4 ? (size_t)(to - from) : sizeof word);
}

static int guard(Guarded *g, size_t bytes, size_t alignment, int at_end, uint32_t outside) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    g->bytes = bytes;
    g->body_bytes = (bytes + page + alignment + page - 1) / page * page;
    g->memory_bytes = g->body_bytes + 2 * FENCE_BYTES;
    if (!(g->memory = shared_memory(g->memory_bytes))) return -1;
    g->body = g->memory + FENCE_BYTES;
    g->array = g->body + (at_end ? (g->body_bytes - bytes) / alignment * alignment : alignment);
    fill_words(g->body, g->body + g->body_bytes, outside); /* from a page's start: the array's words are whole ones */
    return mprotect(g->memory, FENCE_BYTES, PROT_NONE) != 0 ||
           mprotect(g->body + g->body_bytes, FENCE_BYTES, PROT_NONE) != 0;
}

static size_t changed_before(const Guarded *g, uint32_t outside) {
    for (const char *at = g->body; at < g->array; ++at)
        if (*at != ((const char *)&outside)[(at - g->body) % 4]) return (size_t)(g->array - at);
    return 0;
}

static size_t changed_after(const Guarded *g, uint32_t outside) {
    const char *array_end = g->array + g->bytes;
    for (const char *at = g->body + g->body_bytes - 1; at >= array_end; --at)
        if (*at != ((const char *)&outside)[(at - g->body) % 4]) return (size_t)(at - array_end) + 1;
    return 0;
}

/* What a kernel that ended did to memory that it must leave alone; "" where it did nothing. */
static void inspect(const Guarded *guarded, const Any *args, int count, uint32_t outside, char *found) {
    for (int i = 0; i < count; ++i) {
        size_t element = element_bytes(args[i].tensor);
        size_t before = changed_before(&guarded[i], outside), after = changed_after(&guarded[i], outside);
        if (before || after) {
            snprintf(found, REPORT_BYTES, "outside %d %zu %zu", i, (before + element - 1) / element,
                     (after + element - 1) / element);
            return;
        }
    }
    for (int i = 0; i < count - 1; ++i) {
        const char *was = args[i].tensor->data, *is = guarded[i].array;
        if (memcmp(was, is, guarded[i].bytes) == 0) continue;
        size_t at = 0;
        while (was[at] == is[at]) ++at;
        snprintf(found, REPORT_BYTES, "changed %d %zu", i, at / element_bytes(args[i].tensor));
        return;
    }
}
