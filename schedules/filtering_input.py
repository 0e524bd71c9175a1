"""Minimal filtering's transform of the input, as straight-line code on vectors of channels.

One dimension at a time through a small local buffer: that bounds the code.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_ahead import fetching_next
from convtune.schedules.filtering_axis import TiledAxis
from convtune.schedules.filtering_places import place_of
from convtune.schedules.filtering_plan import Plan, exists
from convtune.schedules.statements import (
    Binder,
    Expr,
    Stmt,
    allocated,
    flat,
    loop,
    nest,
    sequence,
    when,
)

from convtune.expression import widened

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class InputTransform:
    """V = B^T d B of one tile and some neighbouring channels."""

    def __init__(
        self, spec: ConvSpec, plan: Plan, read: Callable[..., Expr], v: Callable[..., tuple[Any, Any]]
    ) -> None:
        """read(n, channel, lane, position): x, of a channel and those after it.

        v(point, tile, element): the buffer and the indices of V.
        """
        self.spec, self.plan, self.read, self.v = spec, plan, read, v
        self.filtered = [i for i, axis in enumerate(plan.axes) if axis.filter]

    def tile(self, q: Expr, row: Expr, channel: Expr, width: int, base: Expr = 0) -> Stmt:
        """Of the q-th tile, stored as a block's tile `row`: channels from `channel` on, of those from `base` on."""
        place, axes = place_of(self.plan, q), self.plan.axes
        sizes = [prod(axes[i].alpha for i in self.filtered)] * (len(self.filtered) > 1)
        sizes *= 1 + (len(self.filtered) > 2)
        windows = [axis.windows for axis in axes]

        def each_part(window: Sequence[Expr], parts: Sequence[Expr], lacking: Sequence[bool]) -> Stmt:
            start = [
                axis.input(residue, tile, part) + later
                for axis, residue, tile, part, later in zip(axes, place.residues, place.tiles, parts, window)
            ]
            part = flat([*window, *parts], [*windows, *(axis.parts for axis in axes)])
            at = (row, part * self.plan.v_channels + channel, base + channel)
            return _PartTransform(self, lacking).passes(place.n, start, at, width, sizes)

        def each_window(window: Sequence[Expr]) -> Stmt:
            made = functools.partial(each_part, window)
            return sequence([_parts(runs, made) for runs in itertools.product(*map(_runs, axes))])

        made = nest(windows, each_window)
        first = lambda n, position: self.read(n, base + channel, 0, position)  # noqa: E731
        return when(exists(self.plan, q), fetching_next(self.plan, first, q, made))


def _runs(axis: TiledAxis) -> list[tuple[range, bool]]:
    """The parts that have all taps, and those that lack the last one."""
    return [
        (parts, lacks) for parts, lacks in ((range(axis.whole), False), (range(axis.whole, axis.parts), True)) if parts
    ]


def _parts(runs: Sequence[tuple[range, bool]], body: Callable[[Sequence[Expr], Sequence[bool]], Stmt]) -> Stmt:
    """body(parts, what they lack) for the parts of these runs, one of each dimension."""
    lacking = [lacks for _, lacks in runs]
    return nest(
        [len(parts) for parts, _ in runs], lambda at: body([p.start + i for (p, _), i in zip(runs, at)], lacking)
    )


class _PartTransform:
    """Of a part of the taps. One that lacks its last tap has nothing at infinity: there its products are left out."""

    def __init__(self, whole: InputTransform, lacking: Sequence[bool]) -> None:
        self.plan, self.read, self.v, self.filtered = whole.plan, whole.read, whole.v, whole.filtered
        self.inputs = [axis.inputs - less for axis, less in zip(self.plan.axes, lacking)]
        self.points = [axis.alpha - less for axis, less in zip(self.plan.axes, lacking)]

    def passes(self, n: Expr, start: list[Expr], at: tuple[Expr, Expr, Expr], width: int, sizes: list[int]) -> Stmt:
        """All passes of a tile, through as many local buffers as there are `sizes`, each once more than needed."""
        if not sizes:
            return self._first(n, start, at, width, None)
        inside = self._inside(start)
        if prod(self.points) > self.plan.registers:
            return self._staged(n, start, at, width, sizes, inside)
        fast = self._straight(n, start, at, width)
        return when(inside, fast, self._staged(n, start, at, width, sizes, [])) if inside else fast

    def _staged(
        self,
        n: Expr,
        start: list[Expr],
        at: tuple[Expr, Expr, Expr],
        width: int,
        sizes: list[int],
        inside: Sequence[Expr],
    ) -> Stmt:
        """Through the local buffers. inside: what to ask for first, of a tile that may lie inside x."""

        def with_buffers(made: list[Any]) -> Stmt:
            if len(made) < len(sizes):
                return allocated((sizes[0], width), "half", "local", lambda buffer: with_buffers([*made, buffer]))
            checked = self._columns(n, start, at, width, made[0], checked=True)
            fast = self._columns(n, start, at, width, made[0], checked=False)
            parts = [when(inside, fast, checked) if inside else checked]
            for number in range(1, len(self.filtered)):
                source = made[(number - 1) % len(made)]
                last = number == len(self.filtered) - 1
                parts.append(self._later(number, source, None if last else made[number % len(made)], at, width))
            return sequence(parts)

        return with_buffers([])

    def _first(self, n: Expr, start: list[Expr], at: tuple[Expr, Expr, Expr], width: int, to: Any) -> Stmt:
        """The first filtered dimension, read from x: without conditions where the whole tile lies inside."""
        inside = self._inside(start)
        fast = self._columns(n, start, at, width, to, checked=False)
        if not inside:
            return fast
        return when(inside, fast, self._columns(n, start, at, width, to, checked=True))

    def _inside(self, start: list[Expr]) -> list[Expr]:
        """That a whole tile lies inside x."""
        axes = zip(self.plan.axes, start, self.inputs)
        return [c for axis, first, size in axes for side in range(2) for c in _bounds(axis, first, side, size)]

    def _straight(self, n: Expr, start: list[Expr], at: tuple[Expr, Expr, Expr], width: int) -> Stmt:
        """A tile that lies inside x, from loads to V in registers.

        LLVM keeps the stores to a local buffer, which tiles at the edge read; `erfnet/up64_16` had twice as many.
        """
        axes = self.plan.axes

        def body(lane: Expr) -> Stmt:
            bind = Binder()
            sizes, values = list(self.inputs), dict[tuple[int, ...], Expr]()
            for index in itertools.product(*map(range, sizes)):
                position = [s + i * a.pitch for s, i, a in zip(start, index, axes)]
                values[index] = bind(widened(self.read(n, at[2], lane, position)))
            for current in self.filtered:
                rule, made = axes[current].filter, dict[tuple[int, ...], Expr]()
                assert rule is not None
                around = [[0] if i == current else range(size) for i, size in enumerate(sizes)]
                for index in itertools.product(*around):
                    places = [(*index[:current], i, *index[current + 1 :]) for i in range(self.inputs[current])]
                    outputs = rule.transform_input([values[at_input] for at_input in places], bind)
                    for i, value in enumerate(outputs[: self.points[current]]):
                        place = (*index[:current], i, *index[current + 1 :])
                        made[place] = bind(value)
                sizes[current], values = self.points[current], made
            for index, value in values.items():
                point = flat(index, [axis.alpha for axis in axes])
                bind.store(*self.v(point, at[0], at[1] + lane), value)
            return sequence(bind.statements)

        return loop(width, body, "VECTORIZED", "lane")

    def _columns(
        self, n: Expr, start: list[Expr], at: tuple[Expr, Expr, Expr], width: int, to: Any, checked: bool
    ) -> Stmt:
        axes, first = self.plan.axes, self.filtered[0]
        axis = axes[first]

        def column(index: Sequence[Expr]) -> Stmt:
            place = [s + i * a.pitch for s, i, a in zip(start, index, axes)]

            def body(lane: Expr) -> Stmt:
                bind = Binder()
                values = []
                for i in range(self.inputs[first]):
                    position = [*place[:first], place[first] + i * axis.pitch, *place[first + 1 :]]
                    conditions = _outside(axes, position) if checked else []
                    values.append(bind(_or_zero(conditions, widened(self.read(n, at[2], lane, position)))))
                return self._store(bind, 0, values, index, at, lane, to)

            return loop(width, body, "VECTORIZED", "lane")

        return nest([1 if i == first else size for i, size in enumerate(self.inputs)], column)

    def _later(self, number: int, source: Any, to: Any, at: tuple[Expr, Expr, Expr], width: int) -> Stmt:
        """The next filtered dimension, from one local buffer to another, or to V."""
        axes, current = self.plan.axes, self.filtered[number]
        shape = [axis.alpha for axis in axes]
        around = [*self.points[:current], *self.inputs[current:]]

        def column(index: Sequence[Expr]) -> Stmt:
            def body(lane: Expr) -> Stmt:
                from tvm import tirx

                bind = Binder()
                values = [
                    bind(tirx.BufferLoad(source, [flat([*index[:current], i, *index[current + 1 :]], shape), lane]))
                    for i in range(self.inputs[current])
                ]
                return self._store(bind, number, values, index, at, lane, to)

            return loop(width, body, "VECTORIZED", "lane")

        return nest([1 if i == current else size for i, size in enumerate(around)], column)

    def _store(
        self,
        bind: Binder,
        number: int,
        values: list[Expr],
        index: Sequence[Expr],
        at: tuple[Expr, Expr, Expr],
        lane: Expr,
        to: Any,
    ) -> Stmt:
        current, shape = self.filtered[number], [axis.alpha for axis in self.plan.axes]
        rule = self.plan.axes[current].filter
        assert rule is not None
        for i, value in enumerate(rule.transform_input(values, bind)[: self.points[current]]):
            point = flat([*index[:current], i, *index[current + 1 :]], shape)
            if to is None:
                bind.store(*self.v(point, at[0], at[1] + lane), value)
            else:
                bind.store(to, [point, lane], value)
        return sequence(bind.statements)


def _bounds(axis: TiledAxis, first: Expr, side: int, inputs: int) -> list[Expr]:
    """That all inputs of a tile lie inside, on one side; nothing where they always do."""
    low, high = axis.reach
    if side == 0:
        return [first >= 0] if low < 0 else []
    return [first + (inputs - 1) * axis.pitch < axis.size] if high >= axis.size else []


def _outside(axes: Sequence[TiledAxis], position: Sequence[Expr]) -> list[Expr]:
    found = []
    for axis, place in zip(axes, position):
        low, high = axis.reach
        found += [place >= 0] * (low < 0) + [place < axis.size] * (high >= axis.size)
    return found


def _or_zero(conditions: Sequence[Expr], value: Expr) -> Expr:
    from tvm import tirx

    zero = tirx.const(0.0, "float32")
    return tirx.if_then_else(tirx.all(*conditions), value, zero) if conditions else value
