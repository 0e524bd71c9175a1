/* What an emulated kernel calls, compiled for the emulated machine: runtime.c's functions, without threads, and those
 * of the C library that compilers call by themselves. What only the host knows, it asks for by an interrupt. */
#include <stddef.h>
#include <stdint.h>

typedef struct {
    void *sync_handle;
    int32_t num_task;
} ParallelEnv;
typedef int (*Lambda)(int task, ParallelEnv *env, void *closure);

/* The numbers of kernel.py. */
enum { ALLOCATE = 1, FREE = 2, BEGIN_REGION = 3, NEXT_TASK = 4 };

char convtune_message[1024];

static long host(long number, long argument) {
#if defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = argument;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8) : "memory");
    return x0;
#elif defined(__x86_64__)
    long result = number;
    __asm__ volatile("int $0x80" : "+a"(result) : "D"(argument) : "memory");
    return result;
#else
#error "no such machine is emulated"
#endif
}

/* The host chooses the order of the tasks. */
int convtune_parallel_launch(Lambda lambda, void *closure, int num_task) {
    ParallelEnv env = {NULL, (int)host(BEGIN_REGION, num_task)};
    int failed = 0;
    for (long task; (task = host(NEXT_TASK, 0)) >= 0;)
        if (lambda((int)task, &env, closure) != 0) failed = -1;
    return failed;
}

void *convtune_alloc_workspace(int device_type, int device_id, uint64_t bytes, int code, int bits) {
    (void)device_type, (void)device_id, (void)code, (void)bits;
    return (void *)host(ALLOCATE, (long)bytes);
}

int convtune_free_workspace(int device_type, int device_id, void *workspace) {
    (void)device_type, (void)device_id;
    return (int)host(FREE, (long)workspace);
}

void convtune_set_error(const char *kind, const char **parts, int num_parts) {
    size_t used = 0;
    for (int i = -1; i < num_parts; ++i) {
        const char *part = i < 0 ? kind : parts[i];
        for (; part && *part && used < sizeof convtune_message - 3; ++part) convtune_message[used++] = *part;
        if (i < 0) convtune_message[used++] = ':', convtune_message[used++] = ' ';
    }
    convtune_message[used] = '\0';
}

/* These must not become calls of themselves. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns")
#endif
typedef unsigned char __attribute__((vector_size(16), aligned(1), may_alias)) Bytes;

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    char *t = to;
    const char *f = from;
    for (; bytes >= sizeof(Bytes); bytes -= sizeof(Bytes), t += sizeof(Bytes), f += sizeof(Bytes))
        *(Bytes *)t = *(const Bytes *)f;
    for (; bytes; --bytes) *t++ = *f++;
    return to;
}

void *memset(void *to, int byte, size_t bytes) {
    char *t = to;
    Bytes all = (unsigned char)byte - (Bytes){0};
    for (; bytes >= sizeof(Bytes); bytes -= sizeof(Bytes), t += sizeof(Bytes)) *(Bytes *)t = all;
    for (; bytes; --bytes) *t++ = (char)byte;
    return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
    if ((uintptr_t)to - (uintptr_t)from >= bytes) return memcpy(to, from, bytes);
    for (char *t = to; bytes--;) t[bytes] = ((const char *)from)[bytes];
    return to;
}
