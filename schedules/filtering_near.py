"""How tasks of minimal filtering take channels-first tensors: parts of planes, transposed in the first cache.

    for vector of input channels:
        for plane that tiles of the block lie in (or row of tiles, where that has more than a block):
            for depth (, row): near[position, lane] = x             strips of planes, transposed in registers
            for tile: V = B^T near B
    products
    for vector of output channels:
        for row of tiles:
            for tile (, phase): near[position, lane] = A^T M A
            for depth (, row): y = activation(near + bias + residual)   strips, the other way

Rows of a plane follow each other without a gap, so that whole ones are moved as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_axis import TiledAxis
from convtune.schedules.filtering_input import InputTransform
from convtune.schedules.filtering_output import OutputTransform
from convtune.schedules.filtering_parts import input_part, last_input, output_part
from convtune.schedules.filtering_places import place_of
from convtune.schedules.filtering_plan import Plan
from convtune.schedules.filtering_strips import strip_shape, strips
from convtune.schedules.filtering_tensors import Tensors
from convtune.schedules.ranges import least, most, named, ranged
from convtune.schedules.statements import Expr, Stmt, allocated, nest, sequence, when

from convtune.expression import widened

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Locate = Callable[[Expr, Expr, Expr], tuple[Any, Any]]


class NearInputs:
    """V of a block of tiles and some channels, through a copy of what these read."""

    def __init__(self, spec: ConvSpec, plan: Plan, x: Any, v: Locate) -> None:
        """x: a buffer (n, channel, position)."""
        self.spec, self.plan, self.x, self.v = spec, plan, x, v
        self.part = input_part(plan)
        self.sizes = [axis.size for axis in plan.axes]

    def made(self, block: Expr, channel: Expr, width: int, base: Expr = 0) -> Stmt:
        """Channels from `channel` on, of those from `base` on."""
        plan, part = self.plan, self.part
        _, side = strip_shape(plan.lanes, width, prod(self.sizes))
        rows = plan.axes[2].tiles * (plan.axes[1].tiles if part.whole else 1)
        shape = (prod(part.lines), part.length + 3 * side, width)

        def through(near: Any) -> Stmt:
            def run(first: Expr, end: Expr) -> Stmt:
                return self._run(near, (channel, width, base), side, block, first, end)

            return _runs(plan, block, rows, run)

        return allocated(shape, "near", "global", through)

    def _run(self, near: Any, channels: tuple[Expr, int, Expr], side: int, block: Expr, first: Expr, end: Expr) -> Stmt:
        """Tiles from `first` to `end`, of one plane or row of tiles."""
        from tvm import tirx

        plan, part, (depths, rows, _) = self.plan, self.part, self.plan.axes
        (channel, width, base), (_, height, line) = channels, self.sizes
        a, b = place_of(plan, first), place_of(plan, end - 1)
        start = [axis.input(r, t, 0) for axis, r, t in zip(plan.axes, a.residues, a.tiles)]
        last = [last_input(axis, r, t) for axis, r, t in zip(plan.axes, b.residues, b.tiles)]

        def transformed(d0: Expr, h0: Expr, w0: Expr, h_end: Expr, w_end: Expr) -> Stmt:
            def line_of(d: Expr, h: Expr) -> Expr:
                return d - d0 if part.whole else (d - d0) * part.lines[1] + h - h0

            def origin(d: Expr, h: Expr) -> Expr:
                """The position that lies behind two strips of a line."""
                return (d * height + (h0 if part.whole else h)) * line + (0 if part.whole else w0)

            def fetched(d: Expr, h: Expr, stop: Expr) -> Stmt:
                lines = (a.n, line_of(d, h), origin(d, h), stop)
                return self._fetch(near, lines, base + channel, width, side)

            def depth(i: int) -> Stmt:
                return named(d0 + i, "d", slices)

            def slices(d: Expr) -> Stmt:
                if part.whole:
                    code = when([h_end > h0], fetched(d, h0, (d * height + h_end) * line))
                else:
                    code = ranged(0, part.lines[1], lambda j: named(h0 + j, "h", lambda h: row(d, h)), name="row")
                return when(_within(depths, d), code)

            def row(d: Expr, h: Expr) -> Stmt:
                return when([*_within(rows, h), w_end > w0], fetched(d, h, (d * height + h) * line + w_end))

            def read(n: Expr, at: Expr, lane: Expr, position: Sequence[Expr]) -> Expr:
                d, h, w = position
                place = h * line + w - h0 * line if part.whole else w - w0
                return tirx.BufferLoad(near, [line_of(d, h), place + 2 * side, lane])

            transform = InputTransform(self.spec, plan, read, self.v)
            tiles = _each_tile(plan, block, first, end, lambda q, row: transform.tile(q, row, channel, width, base))
            return sequence([ranged(0, part.lines[0], depth, name="depth"), tiles])

        h0 = most(0, start[1]) if part.whole else start[1]
        ends = (h0, most(0, start[2]), least(height, last[1] + 1), least(line, last[2] + 1))
        return _all_named((start[0], *ends), ("d0", "h0", "w0", "h_end", "w_end"), transformed)

    def _fetch(self, near: Any, line: tuple[Expr, ...], channel: Expr, width: int, side: int) -> Stmt:
        """A line's positions from `first` to `stop`, and some around these that strips hold too."""
        from tvm import tirx

        (n, number, first, stop), positions = line, prod(self.sizes)
        shape = strip_shape(self.plan.lanes, width, positions)

        def read(n: Expr, c: Expr, p: Expr) -> Expr:
            return tirx.BufferLoad(self.x, [n, c, p])

        def move(n: Expr, c: Expr, p: Expr, value: Expr) -> Stmt:
            return tirx.BufferStore(near, widened(value), [number, p - first + 2 * side, c - channel])

        def moved(begin: Expr) -> Stmt:
            place = lambda k: least(begin + k * side, positions - side)  # noqa: E731
            count = (stop - begin + side - 1) // side
            return strips(n, (channel, width), count, place, shape, read, True, move)

        return named(first // side * side, "begin", moved)


class NearOutputs:
    """Y of a block of tiles and a pass, with the epilogue, through a copy of a row of tiles."""

    def __init__(self, spec: ConvSpec, plan: Plan, planes: Tensors, m: Any) -> None:
        """planes: the arguments with positions flat, (n, channel, position)."""
        self.spec, self.plan, self.planes, self.m = spec, plan, planes, m
        self.part = output_part(plan)
        self.sizes = [axis.out for axis in plan.axes]

    def stored(self, block: Expr, number: Expr) -> Stmt:
        plan, part = self.plan, self.part
        transform = OutputTransform(self.spec, plan, lambda *_: None, self.m)

        def vector(source: Expr, run: Expr, channel: Expr, width: int) -> Stmt:
            shape = (part.lines[0], part.lines[1], part.length, width)

            def through(near: Any) -> Stmt:
                of_run = lambda first, end: self._run(near, (source, run, channel, width), block, first, end)  # noqa: E731
                return _runs(plan, block, plan.axes[2].tiles, of_run)

            return allocated(shape, "near", "global", through)

        return transform.vectors(number, vector, phases_apart=False)

    def _run(self, near: Any, vector: tuple[Expr, Expr, Expr, int], block: Expr, first: Expr, end: Expr) -> Stmt:
        """Tiles from `first` to `end` of one row of tiles."""
        plan = self.plan
        a = place_of(plan, first)
        begin = [axis.output(axis.unit(0, t), 0) for axis, t in zip(plan.axes, a.tiles)]

        def row(*begin: Expr) -> Stmt:
            return self._row(near, vector, a.n, (begin[0], begin[1], begin[2]), block, first, end)

        return _all_named(begin, ("d0", "h0", "w0"), row)

    def _row(
        self,
        near: Any,
        vector: tuple[Expr, Expr, Expr, int],
        n: Expr,
        begin: tuple[Expr, Expr, Expr],
        block: Expr,
        first: Expr,
        end: Expr,
    ) -> Stmt:
        from tvm import tirx

        plan, part = self.plan, self.part
        (source, run, channel, width), (d0, h0, w0) = vector, begin
        line = self.sizes[2]

        def keep(n: Expr, oc: Expr, lane: Expr, position: Sequence[Expr], value: Expr) -> Stmt:
            d, h, w = position
            place = [0, (h - h0) * line + w] if part.whole else [h - h0, w - w0]
            return tirx.BufferStore(near, value, [d - d0, *place, lane])

        transform = OutputTransform(self.spec, plan, keep, self.m)
        apart = plan.blocks * plan.width

        def tile(q: Expr, row: Expr) -> Stmt:
            place = place_of(plan, q)
            return sequence(
                [
                    transform.channels(place, row, source + phase * apart, run + phase, channel, width)
                    for phase in range(plan.phases)
                ]
            )

        tiles = _each_tile(plan, block, first, end, tile)
        group = (run // plan.phases if plan.phases > 1 else run) if plan.runs > 1 else 0
        oc = group * plan.run + channel if plan.groups > 1 else channel
        return sequence([tiles, self._lines(near, n, begin, (oc, width), end - first)])

    def _lines(
        self, near: Any, n: Expr, begin: tuple[Expr, Expr, Expr], channels: tuple[Expr, int], tiles: Expr
    ) -> Stmt:
        """What lies inside the output of each depth and row, rows as one where they are whole."""
        from tvm import tirx

        plan, part, (d0, h0, w0) = self.plan, self.part, begin
        _, height, line = self.sizes
        high = plan.axes[1].m * plan.axes[1].phases
        across = plan.axes[2].m * plan.axes[2].phases

        def of_depth(i: Expr) -> Stmt:
            return named(d0 + i, "d", lambda d: when(plan.axes[0].inside(d), rows(i, d)))

        def rows(i: Expr, d: Expr) -> Stmt:
            if not part.whole:
                return ranged(0, high, lambda j: named(h0 + j, "h", lambda h: partial(i, d, j, h)), name="row")
            plane = (d * height + h0) * line  # where the copy of the rows begins
            if plan.block % plan.axes[2].tiles == 0:
                return between(
                    (i, 0, plane), (d * height + most(0, h0)) * line, (d * height + least(height, h0 + high)) * line
                )
            whole = tiles == plan.axes[2].tiles

            def one(j: Expr) -> Stmt:
                h, stop = h0 + j, tirx.Select(whole, least(height, h0 + high), h0 + j + 1)
                h = tirx.Select(whole, most(0, h), h)
                low = (d * height + h) * line + most(0, w0)
                ended = tirx.Select(whole, line, least(line, w0 + tiles * across))
                return when([h >= 0, h < height], between((i, 0, plane), low, (d * height + stop - 1) * line + ended))

            return ranged(0, tirx.Select(whole, 1, high), one, name="row")

        def partial(i: Expr, d: Expr, j: Expr, h: Expr) -> Stmt:
            row = (d * height + h) * line
            stop = row + least(line, w0 + tiles * across)
            return when(plan.axes[1].inside(h), between((i, j, row + w0), row + most(0, w0), stop))

        def between(place: tuple[Expr, Expr, Expr], first: Expr, stop: Expr) -> Stmt:
            return named(
                first, "first", lambda f: named(stop, "stop", lambda s: self._return(near, place, n, channels, f, s))
            )

        return ranged(0, part.lines[0], of_depth, name="depth")

    def _return(
        self, near: Any, place: tuple[Expr, Expr, Expr], n: Expr, channels: tuple[Expr, int], first: Expr, stop: Expr
    ) -> Stmt:
        """The outputs at positions from `first` to `stop` of a line; place: of the line, and where it begins."""
        from tvm import tirx

        (i, j, origin), (oc, width) = place, channels
        read = lambda c, p: tirx.BufferLoad(near, [i, j, p - origin, c])  # noqa: E731
        return stored_line(self.planes, self.plan.lanes, read, (n, oc, width), first, stop)


def stored_columns(
    plan: Plan,
    planes: Tensors,
    transform: OutputTransform,
    near: Any,
    at: tuple[Any, Any],
    begin: Sequence[Any],
    columns: tuple[Any, Any],
) -> Stmt:
    """The outputs of a tile's rows between two columns, to planes. at: image and pass; begin: the first row."""
    from tvm import tirx

    (n, number), (first, end), line = at, columns, plan.axes[2].out

    def returned(index: Sequence[Any]) -> Any:
        place = [b + i * axis.step for b, i, axis in zip(begin, index, plan.axes)]
        origin = (place[0] * plan.axes[1].out + place[1]) * line

        def of_vector(source: Any, _run: Any, channel: Any, width: int) -> Any:
            read = lambda c, p: tirx.BufferLoad(near, [*index, p - (origin + first), c])  # noqa: E731
            start, stop = origin + first, origin + least(end, line)
            return stored_line(planes, plan.lanes, read, (n, channel, width), start, stop, source)

        inside = [c for axis, p in zip(plan.axes, place) for c in axis.inside(p)]
        return when(inside, transform.vectors(number, of_vector))

    return nest([axis.m for axis in plan.axes[:2]], returned)


def stored_line(
    planes: Tensors,
    lanes: int,
    read: Callable[[Expr, Expr], Expr],
    channels: tuple[Expr, Expr, int],
    first: Expr,
    stop: Expr,
    lane: Expr = 0,
) -> Stmt:
    """Y at positions from `first` to `stop` of a plane, with the epilogue; read(lane, position): the sums.

    channels: image, first channel, how many; `lane` is that of the first one. Strips inside the line begin where
    vectors of the plane do.
    """
    (n, oc, width), positions = channels, int(planes.y.shape[2])
    _, side = shape = strip_shape(lanes, width, positions)

    def move(_: Expr, c: Expr, p: Expr, value: Expr) -> Stmt:
        return planes.store_flat(n, oc + (c - lane), p, value)

    one_by_one = ranged(0, width, lambda c: ranged(first, stop, lambda p: move(n, lane + c, p, read(lane + c, p))))
    if side == 1:
        return one_by_one

    def moved(begin: Expr) -> Stmt:
        place = lambda k: most(first, least(begin + k * side, stop - side))  # noqa: E731
        count = (stop - begin + side - 1) // side
        return strips(n, (lane, width), count, place, shape, lambda _, c, p: read(c, p), False, move)

    return when([stop - first >= side], named(first // side * side, "begin", moved), one_by_one)


def _all_named(values: Sequence[Expr], names: Sequence[str], body: Callable[..., Stmt]) -> Stmt:
    """body(variables of these values)."""
    if not values:
        return body()
    return named(values[0], names[0], lambda v: _all_named(values[1:], names[1:], lambda *rest: body(v, *rest)))


def _runs(plan: Plan, block: Expr, size: int, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
    """body(first, end) for tiles of a block that are of the same `size` tiles, of which the output is a multiple."""
    begin = block * plan.block
    if size % plan.block == 0:
        return named(begin, "first", lambda first: body(first, first + plan.block))
    stop = least(begin + plan.block, plan.tiles) if plan.tiles % plan.block else begin + plan.block

    def part(number: Expr) -> Stmt:
        first, end = most(begin, number * size), least(stop, number * size + size)
        return named(first, "first", lambda first: named(end, "end", lambda end: body(first, end)))

    return ranged(begin // size, (stop - 1) // size + 1, part, name="run")


def _each_tile(plan: Plan, block: Expr, first: Expr, end: Expr, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
    """body(tile, its row of the block) for those from `first` to `end`.

    The loop is over all rows of the block: from others TVM 0.27 would take that rows of V and M are as many as tiles.
    """

    def one(row: Expr) -> Stmt:
        q = block * plan.block + row
        whole = plan.axes[2].tiles % plan.block == 0
        return named(q, "q", lambda q: when([] if whole else [q >= first, q < end], body(q, row)))

    return ranged(0, plan.block, one, name="tile")


def _within(axis: TiledAxis, place: Expr) -> list[Expr]:
    low, high = axis.reach
    return [place >= 0] * (low < 0) + [place < axis.size] * (high >= axis.size)
