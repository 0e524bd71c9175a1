"""The plain schedule for whatever no other space accepts: parallel over the output, always valid.

parallel (n, all outer loops of y):
    acc = 0
    for the reduction: acc += x (zero outside) * weight
    y = activation(acc + bias + residual)

The stages of a composite variant follow one another, each whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.expression import Geometry, plain, plain_pack
from convtune.space import Knobs, KnobValue, PackStep, Space
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


class Fallback(Space[CpuTarget]):
    name = "fallback"
    last_resort = True
    summary = "parallel over the output, no tiling; for what no other space accepts"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, CpuTarget)

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        return {}

    def default(self, spec: ConvSpec, target: CpuTarget) -> Knobs:
        return {}

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return plain_pack(spec)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        sch = Schedule(plain(spec))
        last = len(spec.stages) - 1
        for number, stage in enumerate(spec.stages):
            suffix = "" if number == last else str(number)
            if not Geometry.of(stage).inside(stage):
                sch.compute_inline(sch.get_sblock(f"pad{suffix}"))
            _schedule(sch, stage, target, f"mid{suffix}" if suffix else "y", f"acc{suffix}")
        return sch.mod


def _schedule(sch: Any, spec: ConvSpec, target: CpuTarget, result: str, sums: str) -> None:
    """Makes the loops of one convolution: those of its result, with the sums inside."""
    *outer, inner = sch.get_loops(sch.get_sblock(result))
    inner, _ = sch.split(inner, [None, target.lanes])  # a chunk that LLVM vectorises by itself
    sch.parallel(sch.fuse(*outer))
    acc = sch.get_sblock(sums)
    sch.compute_at(acc, inner, preserve_unit_loops=True)
    loops = sch.get_loops(acc)
    reduction, chunk = loops[-(1 + spec.rank) :], loops[-(2 + spec.rank)]
    sch.reorder(*reduction, chunk)
    sch.decompose_reduction(acc, reduction[0])


fallback = Fallback()
