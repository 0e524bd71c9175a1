"""C kernels with parallel regions, for machines that are emulated: right ones, and ones that hang on their order."""

from __future__ import annotations

from pathlib import Path

from measure_kernels import SPEC

from convtune.linker import find_compiler, link
from convtune.paths import cache_dir

TASKS = 4
TEMPLATE = """
#include <stdint.h>
typedef struct { int32_t type, zero; float **tensor; } Any;
typedef struct { void *sync; int32_t num_task; } Env;
typedef int Lambda(int task, Env *env, void *closure);
extern int (*__TVMBackendParallelLaunch)(Lambda *lambda, void *closure, int num_task);
extern void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void *);
typedef struct { volatile float *x, *weight, *y; int shared; float sums[15]; } Closure;

static void compute(Closure *c, int i) {
    for (int oc = 0; oc < 3; ++oc) {
        float sum = 0;
        for (int ic = 0; ic < 4; ++ic) sum += c->x[i * 4 + ic] * c->weight[oc * 4 + ic];
        c->sums[i * 3 + oc] = sum;
        c->y[i * 3 + oc] = sum;
    }
}
static int inner(int task, Env *env, void *closure) { return task == 0 && env->num_task == 1 ? 0 : -1; }

static int work(int task, Env *env, void *closure) {
    Closure *c = closure;
    int chunk = (5 + env->num_task - 1) / env->num_task;
    for (int i = task * chunk; i < 5 && i < (task + 1) * chunk; ++i) compute(c, i);
    %(in_task)s
    return 0;
}
static int again(int task, Env *env, void *closure) {
    Closure *c = closure;
    if (task == 0) for (int i = 0; i < 15; ++i) c->y[i] = c->sums[i];
    return 0;
}

int __tvm_ffi_main(void *self, const Any *args, int32_t count, Any *result) {
    Closure c = {*args[0].tensor, *args[1].tensor, *args[2].tensor, 0};
    int failed = __TVMBackendParallelLaunch(work, &c, %(tasks)s);
    %(then)s
    return failed;
}
"""

IN_TASK = {
    "none": "",
    "reads what other tasks wrote": "if (task == 0) for (int i = 0; i < 15; ++i) c->y[0] += 1e-6f * c->sums[i];",
    "first come": "if (task == 0) c->y[0] += 1e-6f * c->shared; ++c->shared;",
    "fails": "if (task == 2) return -1;",
    "has a region in it": "if (__TVMBackendParallelLaunch(inner, 0, 0)) return -1;",
    "keeps scratch": "float *s = __TVMBackendAllocWorkspace(1, 0, 100, 2, 32); s[task] = 1;"
    " __TVMBackendFreeWorkspace(1, 0, s);",
    "writes beyond scratch": "volatile float *s = __TVMBackendAllocWorkspace(1, 0, 100, 2, 32); s[25] = 1;"
    " __TVMBackendFreeWorkspace(1, 0, (void *)s);",
    "writes far beyond scratch": "volatile float *s = __TVMBackendAllocWorkspace(1, 0, 100, 2, 32); s[9999] = 1;"
    " __TVMBackendFreeWorkspace(1, 0, (void *)s);",
    "frees what it has not": "__TVMBackendFreeWorkspace(1, 0, c->sums);",
    "no instruction": "__builtin_trap();",
    "endless": "for (;;) ++*(volatile int *)&c->shared;",
    "deep": "volatile char big[1200000]; big[task] = 1; big[1199999] = 2;",
}


def library(
    directory: Path, machine: str, in_task: str = "none", then: str = "", tasks: str = "0", flags: str = "-O1"
) -> Path:
    """The kernel for a machine, with what its tasks do besides and what follows them, in a directory to be made."""
    directory.mkdir()
    source, compiled = directory / "kernel.c", directory / "kernel.o"
    source.write_text(TEMPLATE % {"in_task": IN_TASK[in_task], "then": then, "tasks": tasks})
    failure = find_compiler(machine).run(["-c", flags, "-fPIC", "-o", str(compiled), str(source)])
    assert not failure, failure
    return link(compiled, directory / "kernel.so", cache_dir(), machine)


assert SPEC.in_size == (5,)
