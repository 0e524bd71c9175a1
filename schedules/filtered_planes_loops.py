"""The loops of `filtered_planes`: V of a task, its products, and the outputs of a tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from convtune.schedules.filtered_planes_plan import Plan
from convtune.schedules.ranges import least, named, pieces, ranged
from convtune.schedules.statements import (
    Binder,
    Expr,
    Stmt,
    allocated,
    cleared,
    sequence,
    unflat,
    vector_sums,
    when,
    zeros,
)
from convtune.schedules.tiling import LONG_ACTIVATIONS
from convtune.schedules.written import Buffers, Held, viewed

from convtune.expression import epilogue

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Read = Callable[[Expr, int, int], Expr]
Keep = Callable[[int, int, Expr], Stmt]
At = tuple[Expr, Expr, Expr, Expr]  # image, place in front, tile of the filtered dimension, first position behind it


class Tile(Protocol):
    """Sizes of a register tile: outputs x vectors of lanes, summed over depth."""

    @property
    def outputs(self) -> int: ...
    @property
    def vectors(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def depth(self) -> int: ...


class Kernel:
    """Writes the statements of a plan."""

    def __init__(self, spec: ConvSpec, plan: Plan) -> None:
        self.spec, self.plan = spec, plan

    def statement(self, buffers: Buffers, y: Any) -> Stmt:
        """All of a convolution, from x to y."""
        plan, (x, weight, bias, residual) = self.plan, buffers
        into = plan.batch, plan.depth, plan.front, plan.axis.size, plan.inner
        outof = plan.batch, plan.run, plan.front, plan.axis.out, plan.inner
        given = [y, *([residual] if residual is not None else [])]

        def with_views(of_x: Any, planes: list[Any]) -> Stmt:
            self.y = planes[0]
            self.arguments = Held(self.spec, [of_x, weight, bias, planes[1] if residual is not None else None])
            return ranged(0, plan.tasks, self._task, "PARALLEL", "task")

        return viewed([x], into, lambda xs: viewed(given, outof, lambda ys: with_views(xs[0], ys)))

    def _task(self, number: Expr) -> Stmt:
        plan = self.plan
        n, front, tile, block = unflat(number, (plan.batch, plan.front, plan.axis.tiles, plan.position_blocks))
        start = block * plan.width
        if plan.inner % plan.width:
            start = least(start, plan.inner - plan.width)

        def placed(tile: Expr, first: Expr) -> Stmt:
            at = n, front, tile, first

            def through(held: Any) -> Stmt:
                return sequence([self._made(at, held), self._products(held), self._stored(at, held)])

            return allocated(plan.held_shape, "held", "global", through)

        return named(tile, "tile", lambda tile: named(start, "first", lambda first: placed(tile, first)))

    def _made(self, at: At, v: Any) -> Stmt:
        """V of all input channels."""
        plan, (n, front, tile, first) = self.plan, at

        def vector(tile: Expr, whole: bool, ic: Expr, number: Expr) -> Stmt:
            from tvm import tirx

            bind, values, start = Binder(f"float32x{plan.lanes}"), list[Expr](), plan.axis.input(0, tile, 0)
            for j in range(plan.alpha):
                if whole or 0 <= start + j < plan.axis.size:
                    place = [n, ic, front, start + j, tirx.Ramp(first + number * plan.lanes, 1, plan.lanes)]
                    values.append(bind(tirx.BufferLoad(self.arguments.source, place)))
                else:
                    values.append(zeros(plan.lanes))
            base = ic * plan.width + number * plan.lanes
            for point, value in enumerate(plan.filter.transform_input(values, bind)):
                bind.store(v, [point + 1, tirx.Ramp(base, 1, plan.lanes)], value)
            return sequence(bind.statements)

        def kind(tile: Expr, whole: bool) -> Stmt:
            of_ic = lambda ic: ranged(0, plan.block, lambda i: vector(tile, whole, ic, i), name="vector")  # noqa: E731
            return ranged(0, plan.depth, of_ic, name="ic")

        return by_kind(tile, plan.edges, plan.axis.tiles, kind)

    def _products(self, held: Any) -> Stmt:
        """M of all points, channels and positions."""
        plan = self.plan

        def of_block(point: Expr, block: Expr) -> Stmt:
            tile = lambda first: self._tile(held, point, block, first * plan.lanes)  # noqa: E731
            return pieces((0, plan.block), plan.vectors, tile, "vector", "tile")

        def of_point(point: Expr) -> Stmt:
            return ranged(0, plan.blocks, lambda block: of_block(point, block), name="block")

        return ranged(0, plan.alpha, of_point, name="point")

    def _tile(self, held: Any, point: Expr, block: Expr, start: Expr) -> Stmt:
        """A register tile of a point: channels x vectors of positions, from `start` on."""
        from tvm import tirx

        plan, weights = self.plan, self.arguments.weight

        def along(base: Expr, j: int) -> Expr:
            return tirx.Ramp(base * plan.width + start + j * plan.lanes, 1, plan.lanes)

        return register_tile(
            plan,
            1,
            lambda ic, _, j: tirx.BufferLoad(held, [point + 1, along(ic, j)]),
            lambda ic, _, i: tirx.BufferLoad(weights, [point, block, ic, i]),
            lambda i, j, total: tirx.BufferStore(held, total, [point, along(block * plan.outputs + i, j)]),
        )

    def _stored(self, at: At, m: Any) -> Stmt:
        """The outputs of a tile."""
        plan = self.plan

        def kind(tile: Expr, whole: bool) -> Stmt:
            outputs = plan.axis.m if whole else min(plan.axis.m, plan.axis.out - tile * plan.axis.m)

            def of_channel(oc: Expr) -> Stmt:
                return ranged(0, plan.block, lambda i: self._outputs(at, m, (oc, i), tile, outputs), name="vector")

            return ranged(0, plan.run, of_channel, name="oc")

        return by_kind(at[2], plan.edges, plan.axis.tiles, kind)

    def _outputs(self, at: At, m: Any, place: tuple[Expr, Expr], tile: Expr, count: int) -> Stmt:
        """The first outputs of a tile, of a channel and a vector of positions."""
        from tvm import tirx

        plan, (n, front, _, first), (oc, number) = self.plan, at, place
        lanes, bind = plan.lanes, Binder(f"float32x{plan.lanes}")
        base = tirx.Ramp(oc * plan.width + number * lanes, 1, lanes)
        values = [bind(tirx.BufferLoad(m, [point, base])) for point in range(plan.alpha)]
        made = plan.filter.transform_output(values, bind)[:count]

        def output(value: Expr, i: Expr, lane: Expr) -> Stmt:
            where = [front, tile * plan.axis.m + i, first + number * lanes + lane]
            return tirx.BufferStore(self.y, epilogue(self.arguments, value, n, oc, where), [n, oc, *where])

        if self.spec.activation in LONG_ACTIVATIONS:  # once in the code
            return allocated((count, lanes), "row", "local", lambda row: rolled(bind, row, made, output))
        return vector_sums(count, lanes, lambda sums: unrolled(bind, sums, made, output))


def rolled(bind: Binder, row: Any, made: Sequence[Expr], output: Callable[..., Stmt]) -> Stmt:
    """Stores what is made by a loop, from vectors in a buffer."""
    from tvm import tirx

    lanes = int(row.shape[1])
    for i, value in enumerate(made):
        bind.store(row, [i, tirx.Ramp(0, 1, lanes)], value)

    def one(i: Expr) -> Stmt:
        return ranged(0, lanes, lambda lane: output(tirx.BufferLoad(row, [i, lane]), i, lane), "VECTORIZED", "lane")

    return sequence([*bind.statements, ranged(0, len(made), one, name="i")])


def unrolled(bind: Binder, sums: list[Any], made: Sequence[Expr], output: Callable[..., Stmt]) -> Stmt:
    """Stores what is made, each from a vector of its own."""
    from tvm import tirx

    stored = []
    for i, (each, value) in enumerate(zip(sums, made)):
        lanes = int(each.shape[0])
        bind.store(each, [tirx.Ramp(0, 1, lanes)], value)
        read = lambda lane, each=each, i=i: output(tirx.BufferLoad(each, [lane]), i, lane)  # noqa: E731
        stored.append(ranged(0, lanes, read, "VECTORIZED", "lane"))
    return sequence([*bind.statements, *stored])


def by_kind(tile: Expr, edges: Sequence[int], tiles: int, body: Callable[[Expr, bool], Stmt]) -> Stmt:
    """body(tile, whether all it reads and writes exists), of so many tiles: at the edges with their numbers."""
    if isinstance(tile, int):
        return body(tile, tile not in edges)
    code = body(tile, True) if len(edges) < tiles else body(edges[-1], False)
    for edge in edges if len(edges) < tiles else edges[:-1]:
        code = when([tile == edge], body(edge, False), code)
    return code


def register_tile(plan: Tile, taps: int, source: Read, weight: Read, keep: Keep) -> Stmt:
    """Sums of channels x vectors of positions, over input channels and taps.

    source(input channel, tap, vector) is a vector, weight(input channel, tap, channel) a number of the weights, and
    keep(channel, vector, sum) stores a sum.
    """
    from tvm import tirx

    whole = [tirx.Ramp(0, 1, plan.lanes)]
    places = [(i, j) for i in range(plan.outputs) for j in range(plan.vectors)]

    def body(acc: list[Any]) -> Stmt:
        def step(ic: Expr) -> Stmt:
            bind = Binder(f"float32x{plan.lanes}")
            for tap in range(taps):
                inputs = [bind(source(ic, tap, j)) for j in range(plan.vectors)]
                for i in range(plan.outputs):
                    factor = bind(tirx.Broadcast(weight(ic, tap, i), plan.lanes))
                    for each, value in zip(acc[i * plan.vectors :], inputs):
                        bind.add(each, whole, value * factor)
            return sequence(bind.statements)

        kept = [keep(i, j, tirx.BufferLoad(each, whole)) for (i, j), each in zip(places, acc)]
        return sequence([*cleared(acc, plan.lanes), ranged(0, plan.depth, step, name="ic"), *kept])

    return vector_sums(len(places), plan.lanes, body)
