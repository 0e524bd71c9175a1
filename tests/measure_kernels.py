"""C kernels that do right, and each of the wrongs that measuring must survive and name."""

from __future__ import annotations

from pathlib import Path

from convtune.linker import find_compiler, link
from convtune.paths import cache_dir
from convtune.spec import ConvSpec

SPEC = ConvSpec("pointwise", in_channels=4, out_channels=3, in_size=5, kernel=1, layout="NWC")
WHOLE_LINES = SPEC.replace(in_size=(16,))  # x and y fill whole cache lines
PACK = ((),)  # weights as they come

TEMPLATE = """
#include <stdint.h>
#include <stdlib.h>
typedef struct { int32_t type, zero; float **tensor; } Any;
extern void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void *);
static volatile int calls;

int __tvm_ffi_main(void *self, const Any *args, int32_t count, Any *result) {
    volatile float *x = *args[0].tensor, *weight = *args[1].tensor, *y = *args[2].tensor;
    int width = %(width)d, size = 3 * width;
    float last = y[size - 1];
    volatile float *scratch = __TVMBackendAllocWorkspace(1, 0, 64, 2, 32);
    ++calls;
    for (int i = 0; i < width; ++i)
        for (int oc = 0; oc < 3; ++oc) {
            float sum = 0;
            for (int ic = 0; ic < 4; ++ic) sum += x[i * 4 + ic] * weight[oc * 4 + ic];
            y[i * 3 + oc] = sum;
        }
    %(then)s
    __TVMBackendFreeWorkspace(1, 0, (void *)scratch);
    return 0;
}
"""

FAULTS = {
    "none": "",
    "null pointer": "*(volatile int *)0 = 1;",
    "endless loop": "for (;;) ++calls;",
    "abort": "abort();",
    "failure": "return -1;",
    "too large a workspace": "if (!__TVMBackendAllocWorkspace(1, 0, 1ull << 33, 2, 32)) return -1;",
    "no end of memory": "for (;;) *(volatile char *)malloc(1 << 20) = 1;",
    "one element too many": "y[size] = 1;",
    "one element too early": "y[-1] = 1;",
    "far too many": "y[size + 100000] = 1;",
    "same value beyond": "y[size] = y[size];",
    "last element missing": "y[size - 1] = last;",
    "not a number": "y[3] = 0.0f / (y[3] - y[3]);",
    "infinite": "y[3] = 1e38f * 1e38f;",
    "slightly wrong": "y[4] += 1e-3f * 4;",
    "reads before x": "y[0] += x[-1] * 0;",
    "reads after x": "y[0] += x[4 * width] * 0;",
    "reads after weight": "y[0] += weight[12] * 0;",
    "changes x": "x[5] = 7;",
    "writes before weight": "weight[-2] = 7;",
    "changes each time": "y[2] += 1e-6f * calls;",
    "changes in time": "if (calls > 5) y[2] += 1e-6f;",
    "adds to y": "",
    "reads after x for nothing": "last = x[4 * width];",
    "reads before x for nothing": "last = x[-2];",
    "reads far before weight for nothing": "last = weight[-17];",
    "reads a line after weight for nothing": "last = weight[28];",
    "takes x at multiples of 8": "if ((uintptr_t)x % 8) abort();",
    "takes y at multiples of 8": "if ((uintptr_t)y % 8) abort();",
    "takes weight at multiples of 64": "if ((uintptr_t)weight % 64) abort();",
    "reads scratch": "y[2] += scratch[3] * 0;",
    "reads scratch of the call before": "if (calls == 1) scratch[3] = 1; y[2] *= scratch[3];",
    "swallows scratch": "if (scratch[3] > 1) y[2] += 1e-6f;",
}


def library(directory: Path, fault: str, spec: ConvSpec = SPEC, machine: str | None = None) -> Path:
    """The kernel with that fault, in `directory`, which is made. machine: this one, or one that is emulated."""
    directory.mkdir()
    source, compiled = directory / "kernel.c", directory / "kernel.o"
    source.write_text(TEMPLATE % {"width": spec.in_size[0], "then": FAULTS[fault]})
    if fault == "adds to y":
        source.write_text(source.read_text().replace("y[i * 3 + oc] = sum", "y[i * 3 + oc] += sum"))
    failure = find_compiler(machine).run(["-c", "-O1", "-fPIC", "-o", str(compiled), str(source)])
    assert not failure, failure
    return link(compiled, directory / "kernel.so", cache_dir(), machine)
