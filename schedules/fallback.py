"""The plain schedule for whatever no other space accepts: parallel over the output, always valid.

parallel (n, all outer loops of y):
    acc = 0
    for the reduction: acc += x (zero outside) * weight
    y = activation(acc + bias + residual)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, output, read_padded
from convtune.space import FALLBACK, Knobs, KnobValue, PackStep, Space

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


class Fallback(Space):
    name = FALLBACK
    summary = "parallel over the output, no tiling; for what no other space accepts"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return target.family in ("x86", "arm")

    def knobs(self, spec: ConvSpec, target: Target) -> Mapping[str, tuple[KnobValue, ...]]:
        return {}

    def default(self, spec: ConvSpec, target: Target) -> Knobs:
        return {}

    def pack(self, spec: ConvSpec, target: Target, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        # taps first, output channels last: what the innermost loop of a channels-last output reads side by side
        (shape,) = spec.weight_shapes
        return (({"op": "transpose", "axes": [*range(2, len(shape)), 1, 0]},),)

    def schedule(self, spec: ConvSpec, target: Target, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        sch = Schedule(self._expression(spec))
        *outer, inner = sch.get_loops(sch.get_sblock("y"))
        inner, _ = sch.split(inner, [None, target.lanes])  # a chunk that LLVM vectorises by itself
        sch.parallel(sch.fuse(*outer))
        acc = sch.get_sblock("acc")
        sch.compute_at(acc, inner, preserve_unit_loops=True)
        loops = sch.get_loops(acc)
        reduction, chunk = loops[-(1 + spec.rank) :], loops[-(2 + spec.rank)]
        sch.reorder(*reduction, chunk)
        sch.decompose_reduction(acc, reduction[0])
        return sch.mod

    def _expression(self, spec: ConvSpec) -> Any:
        from tvm import te

        geometry = Geometry.of(spec)
        (shape,) = spec.weight_shapes
        arguments = Arguments(spec, [(*shape[2:], shape[1], shape[0])])
        (weight,) = arguments.weights
        term = variants.get(spec.variant).term(
            spec,
            operands(
                geometry,
                lambda n, ic, position: read_padded(arguments, geometry, n, ic, position),
                lambda oc, ic, taps: weight(*taps[3 - spec.rank :], ic, oc),
            ),
        )
        axes = [te.reduce_axis((0, extent), name) for name, extent in term.extents]
        out = spec.out_size

        def summand(n: Any, oc: Any, *position: Any) -> Any:
            return te.sum(term.at(n, oc, position, axes), axis=axes)

        if spec.channels_last:
            acc = te.compute(
                (spec.batch, *out, spec.out_channels), lambda n, *i: summand(n, i[-1], *i[:-1]), name="acc"
            )
            read = lambda n, oc, position: acc(n, *position, oc)  # noqa: E731
        else:
            acc = te.compute((spec.batch, spec.out_channels, *out), summand, name="acc")
            read = lambda n, oc, position: acc(n, oc, *position)  # noqa: E731
        rank = spec.rank
        return arguments.primfunc(output(arguments, 1, lambda n, _g, oc, p: read(n, oc, cube(p, 0)[3 - rank :])))


fallback = Fallback()
