/* Linked into every kernel: binds what TVM's generated code expects of its runtime to convtune's.
 * Hidden, so that a TVM in the same process neither takes these names over nor is taken over. */
#include <stdint.h>

#define HIDDEN __attribute__((visibility("hidden")))

typedef int Launch(int (*lambda)(int task, void *env, void *closure), void *closure, int num_task);
typedef void *Alloc(int device_type, int device_id, uint64_t bytes, int code, int bits);
typedef int Free(int device_type, int device_id, void *workspace);

Launch convtune_parallel_launch;
Alloc convtune_alloc_workspace;
Free convtune_free_workspace;
void convtune_set_error(const char *kind, const char **parts, int num_parts);

/* The kernel has its own, weak and null; these override them at link time. */
HIDDEN Launch *__TVMBackendParallelLaunch = convtune_parallel_launch;
HIDDEN Alloc *__TVMBackendAllocWorkspace = convtune_alloc_workspace;
HIDDEN Free *__TVMBackendFreeWorkspace = convtune_free_workspace;

HIDDEN void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t num_parts) {
    convtune_set_error(kind, parts, num_parts);
}
