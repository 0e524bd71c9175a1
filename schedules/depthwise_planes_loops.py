"""The loops of a channels-first depthwise convolution as TIR: vectors of positions, loaded or permuted from loads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.axes import axes_of
from convtune.schedules.depthwise_planes_plan import ZERO, PlanesPlan, Source, windows
from convtune.schedules.ranges import Range, least, named, part, pieces, ranged, valid_taps
from convtune.schedules.statements import Binder, Expr, Stmt, cleared, sequence, vector_sums, when, zeros
from convtune.schedules.written import Held

from convtune.expression import epilogue_at

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Place = tuple[Expr, Expr, Expr]  # image of the view, channel, depth
Filters = Callable[[int, int], Sequence[Expr]]  # of (kh, kw)


class Planes:
    """The statements of a plan: `kernel` is all of them."""

    def __init__(self, spec: ConvSpec, plan: PlanesPlan, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, arguments, y
        self.weight, self.x = arguments.weight, arguments.source

    def kernel(self) -> Stmt:
        plan, view = self.plan, self.plan.view

        def task(number: Expr) -> Stmt:
            n, rest = number // (plan.parts * plan.row_blocks), number % (plan.parts * plan.row_blocks)
            rows = part(view.rows.out, plan.row_blocks, rest % plan.row_blocks)
            channels = part(plan.channels, plan.parts, rest // plan.row_blocks)

            def depth(c: Expr) -> Stmt:
                tiles = self._plane if plan.flat else lambda at: self._rows(at, rows)
                return ranged(0, view.depth.out, lambda d: tiles((n, c, d)), name="od")

            return ranged(*channels, depth, name="channel")

        return ranged(0, view.batch * plan.parts * plan.row_blocks, task, "PARALLEL", "task")

    def _plane(self, at: Place) -> Stmt:
        """All vectors of a plane."""
        plan, parts = self.plan, []
        columns, carried = plan.view.columns.out, plan.in_plane - 1
        for tile in plan.plane_tiles():
            sources = plan.plane_sources(tile)
            firsts = [vector * plan.side_by_side * columns for vector in tile]

            def taps(acc: Any, source: Place, filters: Any, guarded: bool, sources: Any = sources) -> list[Stmt]:
                if guarded:
                    return []
                high = plan.view.rows.size * plan.view.columns.size - plan.lanes
                return [self._products(acc, source, 0, (0, high), sources, filters)]

            stored = [plan.stored(vector) if vector == carried else plan.lanes for vector in tile]
            parts.append(self._tile(at, len(tile), taps, firsts, stored))
        return sequence(parts)

    def _rows(self, at: Place, rows: Range) -> Stmt:
        """The row tiles of a task."""
        return pieces(rows, self.plan.rows, lambda h: self._row_tile(at, h), "oh", "row_tile")

    def _row_tile(self, at: Place, h: Expr) -> Stmt:
        """The tiles of a row: those at the left border, those inside, those at the right one."""
        plan = self.plan
        inner = plan.inner

        def inside(tile: Expr) -> Stmt:
            start = tile * plan.width
            if plan.start(inner.stop - 1) % plan.width:
                start = least(start, plan.view.columns.out - plan.width)
            moved = (plan.start(inner.stop - 1) - plan.start(inner.start)) * plan.view.columns.stride
            return named(start, "ow", lambda w: self._columns(at, h, w, inner.start, moved))

        parts = [self._columns(at, h, plan.start(tile), tile, 0) for tile in range(inner.start)]
        if inner:
            parts.append(ranged(inner.start, inner.stop, inside, name="tile"))
        parts += [self._columns(at, h, plan.start(tile), tile, 0) for tile in range(inner.stop, plan.tiles)]
        return sequence(parts)

    def _columns(self, at: Place, h: Expr, w: Expr, tile: int, moved: int) -> Stmt:
        """A tile that reads what the tile with that number reads, elsewhere; at most so many columns to the right."""
        plan = self.plan
        rows, columns = plan.view.rows, plan.view.columns
        sources, pieces = plan.row_sources(tile), len(plan.offsets)
        shift = (w - plan.start(tile)) * columns.stride
        bounds = (0, columns.size - plan.lanes - moved)
        last = rows.first(rows.out - plan.rows)

        def taps(acc: Any, source: Place, filters: Any, guarded: bool) -> list[Stmt]:
            found = []
            for offset, pairs in plan.row_reads().items():
                row = rows.first(h) + offset
                uses = {
                    source: [(oh * pieces + vector, kh, kw) for vector, kw in served for oh, kh in pairs]
                    for source, served in sources.items()
                }
                code = self._products(acc, source, row * columns.size + shift, bounds, uses, filters)
                conditions = [row >= 0] * (offset < rows.before) + [row < rows.size] * (last + offset >= rows.size)
                if bool(conditions) == guarded:
                    found.append(when(conditions, code))
            return found

        firsts = [(h + row) * columns.out + w + offset for row in range(plan.rows) for offset in plan.offsets]
        return self._tile(at, len(firsts), taps, firsts, [plan.lanes] * len(firsts))

    def _tile(self, at: Place, vectors: int, taps: Any, firsts: Sequence[Expr], stored: Sequence[int]) -> Stmt:
        """taps(acc, place of the input, filters, guarded) for all planes, and the outputs, in vectors from `firsts` on.

        acc: the vectors of the first channel, then those of the next. filters: of each tap one of each channel.
        guarded: whether the products that have conditions are wanted, or the others.
        """
        from tvm import tirx

        n, c, d = at
        depth, lanes = self.plan.view.depth, self.plan.lanes
        kernel = [axis.taps for axis in self.plan.view.axes]

        def plane(acc: Any, kd: Expr) -> Stmt:
            def filters(kh: int, kw: int) -> list[Expr]:
                return [tirx.BufferLoad(self.weight, [c, (kd * kernel[1] + kh) * kernel[2] + kw])]

            return self._parts(acc, (n, c, depth.first(d) + kd * depth.dilation), vectors, filters, taps)

        def body(acc: Any) -> Stmt:
            planes = ranged(*valid_taps(depth, depth.first(d)), lambda kd: plane(acc, kd), name="kd")
            return sequence([*cleared(acc, lanes), planes, *self._store(acc, at, firsts, stored)])

        return vector_sums(vectors, lanes, body)

    def _parts(self, acc: Any, source: Place, vectors: int, filters: Filters, taps: Any) -> Stmt:
        """An input plane's products, some columns of the kernel at a time.

        Those that have conditions come first. After a condition LLVM 22 multiplies for those rows of outputs that it
        does not concern, and stores what it loaded for them before.
        """
        found = []
        for guarded, held in itertools.product((True, False), self.plan.held(vectors)):
            bind, rows = Binder(), range(self.plan.view.rows.taps)
            bound = {(kh, kw): [bind(each) for each in filters(kh, kw)] for kw in held for kh in rows}
            products = taps(acc, source, bound, guarded)
            found += [*bind.statements, *products] if products else []
        return sequence(found)

    def _products(
        self,
        acc: Any,
        at: Place,
        base: Expr,
        bounds: tuple[int, int],
        sources: Mapping[Source, Sequence[Any]],
        filters: Mapping[Any, Sequence[Expr]],
    ) -> Stmt:
        """acc += each source, whose positions count from `base` in the input plane at a place, times those taps that it
        serves of which there are filters."""
        from tvm import tirx

        lanes, vectors, whole = self.plan.lanes, len(acc) // self.plan.outputs, [tirx.Ramp(0, 1, self.plan.lanes)]
        bind, loads = Binder(f"float32x{lanes}"), dict[int, Expr]()
        for source, uses in sources.items():
            served = [use for use in uses if use[1:] in filters]
            if not served:
                continue
            starts = windows(source, *bounds, list(loads))
            for start in starts:
                if start not in loads:
                    where = plane_index(self.spec, *at, tirx.Ramp(base + start, 1, lanes))
                    loads[start] = bind(tirx.BufferLoad(self.x, where))
            value = lanewise(source, starts, [loads[start] for start in starts], bind)
            for vector, kh, kw in served:
                for i, weight in enumerate(filters[kh, kw]):
                    sums, product = acc[i * vectors + vector], value * tirx.Broadcast(weight, lanes)
                    bind.add(sums, whole, product)
        return sequence(bind.statements) if bind.statements else tirx.Evaluate(0)

    def _store(self, acc: Any, at: Place, firsts: Sequence[Expr], stored: Sequence[int]) -> list[Stmt]:
        """The epilogue, vector after vector: what one writes beyond its own outputs the next one overwrites.

        A vector with fewer outputs is filled with the end of the one before it.
        """
        from tvm import tirx

        lanes, found = self.plan.lanes, []
        whole = tirx.Ramp(0, 1, lanes)
        for i, (first, own) in enumerate(zip(firsts, stored)):
            back = lanes - own
            if back:
                before = first - firsts[i - 1]
                order = [before - back + lane if lane < back else lanes + lane - back for lane in range(lanes)]
                pair = [tirx.BufferLoad(acc[j], [whole]) for j in (i - 1, i)]
                found.append(tirx.BufferStore(acc[i], tirx.Shuffle(pair, order), [whole]))

            def output(lane: Expr, i: int = i, start: Expr = first - back) -> Stmt:
                value = tirx.BufferLoad(acc[i], [lane])
                where = plane_index(self.spec, *at, start + lane)
                return tirx.BufferStore(self.y, epilogue_at(self.arguments, value, where), where)

            found.append(ranged(0, lanes, output, "VECTORIZED", "lane"))
        return found


def plane_index(spec: ConvSpec, n: Expr, channel: Expr, depth: Expr, position: Expr) -> list[Expr]:
    """The index of a position of a plane of `view_of(spec)`; rows are as one, which they are in memory."""
    d, rows, columns = axes_of(spec)
    if d.trivial and d.size > 1 and not (rows.trivial and columns.trivial):
        n, depth = n // d.size, n % d.size
    return [n, channel, *(depth, 0, position)[3 - spec.rank :]]


def lanewise(source: Source, starts: Sequence[int], loads: Sequence[Expr], bind: Binder) -> Expr:
    """A source's vector, of loads that begin at these positions."""
    from tvm import tirx

    lanes, value = len(source), loads[0]

    def among(start: int, position: int) -> bool:
        return start <= position < start + lanes

    covered = {lane for lane, p in enumerate(source) if among(starts[0], p)}
    taken = [p - starts[0] if lane in covered else lane for lane, p in enumerate(source)]
    for start, load in zip(starts[1:], loads[1:]):
        order = [
            taken[lane] if lane in covered or not among(start, p) else lanes + p - start
            for lane, p in enumerate(source)
        ]
        value = bind(tirx.Shuffle([value, load], order))
        covered |= {lane for lane, p in enumerate(source) if among(start, p)}
        taken = list(range(lanes))
    if ZERO in source:
        zero = zeros(lanes)
        order = [lanes + lane if p == ZERO else taken[lane] for lane, p in enumerate(source)]
        return bind(tirx.Shuffle([value, zero], order))
    return value if taken == list(range(lanes)) else bind(tirx.Shuffle([value, value], taken))
