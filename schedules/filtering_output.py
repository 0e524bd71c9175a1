"""Minimal filtering's transform of the products to the output, with the epilogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_places import place_of
from convtune.schedules.filtering_plan import Place, Plan, exists
from convtune.schedules.statements import (
    Binder,
    Expr,
    Stmt,
    allocated,
    flat,
    loop,
    nest,
    sequence,
    unflat,
    when,
)
from convtune.schedules.tiling import LONG_ACTIVATIONS

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class OutputTransform:
    """Y = A^T M A of one tile and a vector of channels, with the epilogue, stored where there are outputs."""

    def __init__(
        self, spec: ConvSpec, plan: Plan, store: Callable[..., Stmt], m: Any, past: Callable[..., Stmt] | None = None
    ) -> None:
        """store(n, channel, lane, position, value): of a channel and those after it.

        past(n, channel, position, values): of a vector, past the caches, for a plan that has outputs stored so.
        """
        self.spec, self.plan, self.store, self.m = spec, plan, store, m
        self.past = past if plan.past else None
        self.filtered = [i for i, axis in enumerate(plan.axes) if axis.filter]

    def tile(self, q: Expr, row: Expr, number: Expr) -> Stmt:
        """Of the q-th tile, a block's tile `row`: all channels of the pass with that number."""
        return when(exists(self.plan, q), self.at(place_of(self.plan, q), row, number))

    def at(self, place: Place, row: Expr, number: Expr) -> Stmt:
        """Of the tile at a place."""
        return self.vectors(number, lambda *vector: self.channels(place, row, *vector))

    def vectors(self, number: Expr, body: Callable[[Expr, Expr, Expr, int], Stmt], phases_apart: bool = True) -> Stmt:
        """body(where in a row of M, run, channel of the run, width) for each vector of the pass with that number.

        phases_apart: or else only of first phases, whose pass has all others too.
        """
        plan = self.plan
        together = 1 if phases_apart else plan.phases

        def vector(index: Sequence[Expr]) -> Stmt:
            block, cv = index
            if together > 1:
                block = block // plan.blocks * plan.blocks * together + block % plan.blocks
            linear = number * plan.per_pass + block
            run, within = (linear // plan.blocks, linear % plan.blocks) if plan.runs > 1 else (0, linear)
            channel = (within * plan.vectors + cv) * plan.lanes
            source = (block * plan.vectors + cv) * plan.lanes
            whole = body(source, run, channel, plan.lanes)
            tail = plan.run % plan.lanes
            if plan.blocks * plan.width == plan.run:
                return whole
            if not tail:
                return when([channel < plan.run], whole)
            if plan.overlaps:  # TVM 0.27 divides by zero where an index has a minimum in it
                back = plan.lanes - tail
                rest = body(source - back, run, channel - back, plan.lanes)
            else:
                rest = body(source, run, channel, tail)
            return when([channel + plan.lanes <= plan.run], whole, when([channel < plan.run], rest))

        return nest([plan.per_pass // together, plan.vectors], vector)

    def channels(self, place: Place, row: Expr, source: Expr, run: Expr, channel: Expr, width: int) -> Stmt:
        """Of the tile at a place and a vector of channels."""
        axes, phases = self.plan.axes, self.plan.phases
        base = [axis.unit(r, t) for axis, r, t in zip(axes, place.residues, place.tiles)]
        group, of_phase = (run // phases, run % phases) if phases > 1 else (run, 0)
        oc = group * self.plan.run + channel if self.plan.groups > 1 else channel
        at = (place.n, base, unflat(of_phase, [axis.phases for axis in axes]), oc)

        def read_m(index: Sequence[Expr], lane: Expr) -> Expr:
            from tvm import tirx

            point = flat(index, [axis.alpha for axis in axes])
            return tirx.BufferLoad(self.m, [point, row * self.plan.m_row + source + lane])

        def passes(number: int, read: Callable[[Sequence[Expr], Expr], Expr]) -> Stmt:
            """The pass over a filtered dimension and all after it; dimensions before it are outputs already."""
            current = self.filtered[number]
            sizes = [axis.m if i <= current else axis.alpha for i, axis in enumerate(axes)]
            around = [1 if i == current else size for i, size in enumerate(sizes)]
            if number == len(self.filtered) - 1:
                return nest(around, lambda index: self._last(at, index, width, read))

            def with_buffer(to: Any) -> Stmt:
                from tvm import tirx

                def column(index: Sequence[Expr]) -> Stmt:
                    return loop(width, lambda lane: keep(index, lane), "VECTORIZED", "lane")

                def keep(index: Sequence[Expr], lane: Expr) -> Stmt:
                    bind = Binder()
                    for i, value in enumerate(self._outputs(current, bind, index, lane, read)):
                        bind.store(to, [flat([*index[:current], i, *index[current + 1 :]], sizes), lane], value)
                    return sequence(bind.statements)

                def read_half(index: Sequence[Expr], lane: Expr) -> Expr:
                    return tirx.BufferLoad(to, [flat(index, sizes), lane])

                return sequence([nest(around, column), passes(number + 1, read_half)])

            return allocated((prod(sizes), width), "half", "local", with_buffer)

        return passes(0, read_m)

    def _outputs(
        self, current: int, bind: Binder, index: Sequence[Expr], lane: Expr, read: Callable[..., Expr]
    ) -> list[Expr]:
        axis = self.plan.axes[current]
        assert axis.filter is not None
        values = [bind(read([*index[:current], i, *index[current + 1 :]], lane)) for i in range(axis.alpha)]
        return axis.filter.transform_output(values, bind)

    def _last(
        self,
        at: tuple[Expr, Sequence[Expr], Sequence[Expr], Expr],
        index: Sequence[Expr],
        width: int,
        read: Callable[[Sequence[Expr], Expr], Expr],
    ) -> Stmt:
        """The last filtered dimension: a row of outputs, to y. at: image, first outputs, phases, output channel."""
        from tvm import tirx

        axes, current = self.plan.axes, self.filtered[-1]
        axis, (n, base, phases, oc), past = axes[current], at, self.past
        first = [b + i * a.step for b, i, a in zip(base, index, axes)]
        places = [a.output(u, phase) for a, u, phase in zip(axes, first, phases)]

        def at_output(i: Expr, store: Callable[[Sequence[Expr]], Stmt]) -> Stmt:
            place = axis.output(first[current] + i * axis.step, phases[current])
            return when(axis.inside(place), store([*places[:current], place, *places[current + 1 :]]))

        def stored(i: Expr, value: Expr, lane: Expr) -> Stmt:
            return at_output(i, lambda position: self.store(n, oc, lane, position, value))

        def direct(lane: Expr) -> Stmt:
            bind = Binder()
            values = [bind(value) for value in self._outputs(current, bind, index, lane, read)]
            return sequence([*bind.statements, *(stored(i, value, lane) for i, value in enumerate(values))])

        def staged(row: Any) -> Stmt:
            def keep(lane: Expr) -> Stmt:
                bind = Binder()
                for i, value in enumerate(self._outputs(current, bind, index, lane, read)):
                    bind.store(row, [i, lane], value)
                return sequence(bind.statements)

            def output(i: Expr) -> Stmt:
                def value(lane: Expr) -> Expr:
                    return tirx.BufferLoad(row, [i, lane])

                if past is not None:
                    return at_output(i, lambda position: past(n, oc, position, value))
                return loop(width, lambda lane: stored(i, value(lane), lane), "VECTORIZED", "lane")

            return sequence([loop(width, keep, "VECTORIZED", "lane"), loop(axis.m, output)])

        inside = [c for i, (place, a) in enumerate(zip(places, axes)) if i != current for c in a.inside(place)]
        # past the caches go whole vectors; a long activation is once in the code, not for each output of the row
        if past is not None or self.spec.activation in LONG_ACTIVATIONS:
            return when(inside, allocated((axis.m, width), "row", "local", staged))
        return when(inside, loop(width, direct, "VECTORIZED", "lane"))
