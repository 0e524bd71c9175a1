"""The plain schedule of a GPU: one output element a thread, for any variant, always valid.

for each stage a kernel of its own, results between them in global memory:
    blocks of up to 256 threads, thread = element of y, neighbours in memory side by side:
        acc = 0                                                       in a register
        for the reduction: acc += x (zero outside) * weight
        y = activation(acc + bias + residual)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_tiling import thread_each
from convtune.schedules.plain_stages import PlainStages

from convtune.spec import count
from convtune.targets.gpu import GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


class GpuThreads(PlainStages[GpuTarget]):
    name = "gpu_threads"
    dtypes = ("float32", "float16")
    summary = "one output element a thread, no tiling; for what no other space accepts"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, GpuTarget)

    def _place(self, sch: Any, spec: ConvSpec, target: GpuTarget, result: str, sums: str) -> None:
        thread_each(sch, target, result, sums, count(spec.out_shape))


gpu_threads = GpuThreads()
