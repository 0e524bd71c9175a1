/* Scratch memory of kernels, part of runtime.c, whose `message` it writes.
 *
 * Each thread keeps the blocks it got, and gives the smallest free one that is large enough: no malloc, and
 * no page fault, once a kernel has run. Blocks may be freed in any order, by the thread that took them. */

typedef struct Block {
    struct Block *next;
    size_t capacity;
    int used;
} Block;

/* Filled behind what was asked for, so that reading there is found out. Not all of the block: one of 300 MB, left by
 * a kernel before, took half an hour to be filled for each task of another that wants 10 kB. */
#define BEYOND 4096u

static _Thread_local Block *blocks;
static pthread_key_t blocks_key; /* only for its destructor */
static _Atomic int filling = -1;

static void free_blocks(void *list) {
    for (Block *block = list, *next; block; block = next) next = block->next, free(block);
}

/* Too small for what is wanted now, and so for what will be wanted again. */
static void drop_unused_blocks(void) {
    for (Block **link = &blocks; *link;) {
        Block *block = *link;
        if (block->used) link = &block->next;
        else *link = block->next, free(block);
    }
    pthread_setspecific(blocks_key, blocks);
}

EXPORT void *convtune_alloc_workspace(int device_type, int device_id, uint64_t bytes, int code, int bits) {
    (void)device_type, (void)device_id, (void)code, (void)bits;
    Block *best = NULL;
    for (Block *block = blocks; block; block = block->next)
        if (!block->used && block->capacity >= bytes && (!best || block->capacity < best->capacity)) best = block;
    if (!best) {
        drop_unused_blocks();
        size_t capacity = ((size_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        best = bytes > SIZE_MAX / 2 ? NULL : aligned_alloc(ALIGNMENT, ALIGNMENT + capacity);
        if (!best) {
            snprintf(message, sizeof message, "MemoryError: no %llu bytes of scratch memory", (unsigned long long)bytes);
            return NULL;
        }
        *best = (Block){.next = blocks, .capacity = capacity};
        blocks = best;
        pthread_setspecific(blocks_key, blocks);
    }
    best->used = 1;
    char *workspace = (char *)best + ALIGNMENT;
    int byte = atomic_load(&filling);
    if (byte >= 0) memset(workspace, byte, best->capacity - bytes > BEYOND ? bytes + BEYOND : best->capacity);
    return workspace;
}

/* Blocks given from now on, to any thread, are full of that byte, so that a kernel which reads what it did not
 * write is found out; -1: they hold what they held. */
EXPORT void convtune_fill_workspace(int byte) { atomic_store(&filling, byte); }

EXPORT int convtune_free_workspace(int device_type, int device_id, void *workspace) {
    (void)device_type, (void)device_id;
    ((Block *)((char *)workspace - ALIGNMENT))->used = 0;
    return 0;
}

/* After a kernel failed: generated code returns without freeing what it took. */
EXPORT void convtune_release_workspace(void) {
    for (Block *block = blocks; block; block = block->next) block->used = 0;
}
