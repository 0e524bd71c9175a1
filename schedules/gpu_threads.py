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

from convtune.schedules.gpu_tiling import bind_elements

from convtune.expression import Geometry, plain, plain_pack
from convtune.space import Knobs, KnobValue, PackStep, Space
from convtune.spec import count
from convtune.targets.gpu import WARP, GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_THREADS = 256


class GpuThreads(Space[GpuTarget]):
    name = "gpu_threads"
    last_resort = True
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
            threads = _threads(target, count(stage.out_shape))
            _schedule(sch, f"mid{suffix}" if suffix else "y", f"acc{suffix}", threads)
        return sch.mod


def _threads(target: GpuTarget, elements: int) -> int:
    """Threads of a block: as many as leave no SM without one, whole warps."""
    threads = MOST_THREADS
    while threads > WARP and elements < target.sms * threads:
        threads //= 2
    return threads


def _schedule(sch: Any, result: str, sums: str, threads: int) -> None:
    """Makes a kernel of one convolution: the loops of its result, with the sum inside."""
    loops = sch.get_loops(sch.get_sblock(result))
    acc = sch.get_sblock(sums)
    # before the loops are fused: TVM 0.27 sees no reduction where one thread's indices are divisions
    sch.compute_at(acc, loops[-1], preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")
    bind_elements(sch, loops, threads)
    sch.decompose_reduction(acc, sch.get_loops(acc)[2 + len(loops)])


gpu_threads = GpuThreads()
