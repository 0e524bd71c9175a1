"""Products of matrices on Tensor Cores: the call that schedules put into a kernel, and the function that it calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ROWS, COLUMNS, DEPTH = 16, 8, 16
"""Of the product that a warp makes in one call."""
NAME = "convtune_multiply_16x8x16"
LEAST_COMPUTE = 75

_ONE_STEP = """\
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
"""
# sm_75 has half the depth
_TWO_STEPS = """\
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) : "r"(a0), "r"(a1), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) : "r"(a2), "r"(a3), "r"(b1));
"""


def prelude(compute: int) -> str:
    """The function in CUDA C, for GPUs of that arch, such as 80.

    All threads of a warp call it. Thread 4 g + t, with t below 4, has the sums of rows g and g + 8 and of columns 2 t
    and 2 t + 1, row by row, and brings pairs of float16, the first in the lower half of a word:

        a0, a1, a2, a3: rows g, g + 8, g, g + 8 of the left matrix, at depths 2 t, 2 t + 8 and those after them
        b0, b1: column g of the right matrix, at depths 2 t and 2 t + 8 and those after them

    as the PTX ISA lays out the fragments of mma.m16n8k16 and of two of mma.m16n8k8.
    """
    steps = _ONE_STEP if compute >= 80 else _TWO_STEPS
    words = ", ".join(f"unsigned int {name}" for name in ("a0", "a1", "a2", "a3", "b0", "b1"))
    return f"static __device__ __forceinline__ void {NAME}(float* sums, {words}) {{\n{steps}}}\n"


def with_prelude(source: str, compute: int) -> str:
    """The CUDA C of kernels, with the function where they call it."""
    if f"{NAME}(" not in source:
        return source
    before, first, rest = source.partition('extern "C" __global__')
    return f"{before}{prelude(compute)}{first}{rest}"


def multiply(sums: Any, rows: Sequence[Any], columns: Sequence[Any]) -> Any:
    """The statement that adds a product of a warp to its sums.

    sums: a pointer to a thread's four, float32. rows, columns: its a0 to a3, and b0 and b1, each of type float16x2.
    """
    from tvm import tirx

    words = [tirx.reinterpret("uint32", pair) for pair in (*rows, *columns)]
    return tirx.Evaluate(tirx.call_extern("void", NAME, sums, *words))
