"""The plain schedule for whatever no other space accepts: parallel over the output, always valid.

parallel (n, all outer loops of y):
    acc = 0
    for the reduction: acc += x (zero outside) * weight
    y = activation(acc + bias + residual)

The stages of a composite variant follow one another, each whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convtune.schedules.plain_stages import PlainStages

from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


class Fallback(PlainStages[CpuTarget]):
    name = "fallback"
    summary = "parallel over the output, no tiling; for what no other space accepts"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, CpuTarget)

    def _place(self, sch: Any, spec: ConvSpec, target: CpuTarget, result: str, sums: str) -> None:
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
