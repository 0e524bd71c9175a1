"""The plain schedule of a GPU: one output element a thread, for any variant, always valid.

for each stage a kernel of its own, results between them in global memory:
    blocks of up to 256 threads, thread = element of y, neighbours in memory side by side:
        acc = 0                                                       in a register
        for the reduction: acc += x (zero outside) * weight
        y = activation(acc + bias + residual)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_tiling import thread_each

from convtune.expression import Geometry, plain, plain_pack
from convtune.space import Knobs, KnobValue, PackStep, Space
from convtune.spec import count
from convtune.targets.gpu import GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


class GpuThreads(Space[GpuTarget]):
    name = "gpu_threads"
    last_resort = True
    dtypes = ("float32", "float16")
    summary = "one output element a thread, no tiling; for what no other space accepts"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, GpuTarget)

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        return {}

    def default(self, spec: ConvSpec, target: GpuTarget) -> Knobs:
        return {}

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return plain_pack(spec)

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        sch = Schedule(plain(spec))
        last = len(spec.stages) - 1
        for number, stage in enumerate(spec.stages):
            suffix = "" if number == last else str(number)
            if not Geometry.of(stage).inside(stage):
                sch.compute_inline(sch.get_sblock(f"pad{suffix}"))
            result = f"mid{suffix}" if suffix else "y"
            thread_each(sch, target, result, f"acc{suffix}", count(stage.out_shape))
        return sch.mod


gpu_threads = GpuThreads()
