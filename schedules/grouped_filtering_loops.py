"""The loops of a grouped convolution filtered along its rows, as TIR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.grouped_filtering_plan import Plan
from convtune.schedules.ranges import least, named, part, ranged
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, sequence, vector_sums, when
from convtune.schedules.tiling import LONG_ACTIVATIONS, ceil_div
from convtune.schedules.written import Held

from convtune.expression import epilogue

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

At = tuple[Expr, Expr, Expr, Expr]  # image, first unit of a task, number of a unit in it, first row of a block


class Kernel:
    """The statements of a plan: `kernel` is all of them."""

    def __init__(self, spec: ConvSpec, plan: Plan, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, arguments, y

    def kernel(self) -> Stmt:
        plan = self.plan

        def task(number: Expr) -> Stmt:
            image, rest = number // (plan.spans * plan.blocks), number % (plan.spans * plan.blocks)
            low, high = part(plan.rows.out, plan.blocks, rest % plan.blocks)
            unit = rest // plan.blocks * plan.span
            return named(low, "first", lambda first: self._task((image, unit, 0, first), high - low))

        return ranged(0, plan.batch * plan.spans * plan.blocks, task, "PARALLEL", "task")

    def _task(self, at: At, rows: Expr) -> Stmt:
        plan = self.plan

        def with_buffers(v: Any, m: Any) -> Stmt:
            def products(row: Expr) -> Stmt:
                return ranged(0, plan.span, lambda u: self._products(_of_unit(at, u), v, m, row), name="unit")

            def tile(number: Expr) -> Stmt:
                start = least(number * plan.high, rows - plan.high)
                return named(start, "row", lambda row: sequence([products(row), self._rows(at, m, row)]))

            reached = (rows - 1) * plan.rows.stride + plan.rows.reached(1)
            return sequence(
                [self._made(at, v, reached), ranged(0, (rows + plan.high - 1) // plan.high, tile, name="row_tile")]
            )

        # of one dimension: TVM 0.27 drops what lies unused between points that are another
        sizes = [plan.span * plan.columns.places * distance for distance in (plan.v_point, plan.m_point)]
        with_v = lambda v: allocated(sizes[1:], "m", "global", lambda m: with_buffers(v, m))  # noqa: E731
        return allocated(sizes[:1], "v", "global", with_v)

    def _made(self, at: At, v: Any, reached: Expr) -> Stmt:
        """So many rows of V."""
        return ranged(0, reached, lambda row: self._row(at, v, row), name="row")

    def _row(self, at: At, v: Any, row: Expr) -> Stmt:
        """A row of V, zeros where it lies outside of x."""
        rows, columns = self.plan.rows, self.plan.columns
        position = at[3] * rows.stride + row - rows.before
        inner = columns.inner

        def one(group: Expr) -> Stmt:
            return self._values(at, v, row, position, group)

        parts = [one(group) for group in range(inner.start)]
        parts += [ranged(inner.start, inner.stop, one, name="tile")] if inner else []
        parts += [one(group) for group in range(inner.stop, columns.groups)]
        last = (rows.out - 1) * rows.stride + rows.reached(1) - 1 - rows.before
        conditions = [position >= 0] * (rows.before > 0) + [position < rows.size] * (last >= rows.size)
        return when(conditions, sequence(parts), self._zeros(v, row) if conditions else None)

    def _zeros(self, v: Any, row: Expr) -> Stmt:
        from tvm import tirx

        plan = self.plan

        def zero(point: Expr, i: Expr) -> Stmt:
            return tirx.BufferStore(v, tirx.const(0.0, "float32"), [point * plan.v_point + row * plan.v_row + i])

        of_point = lambda point: ranged(0, plan.v_row, lambda i: zero(point, i))  # noqa: E731
        return ranged(0, plan.span * plan.columns.places, of_point, name="place")

    def _values(self, at: At, v: Any, row: Expr, position: Expr, group: Expr) -> Stmt:
        """The values of a group, of all channels; a number where their columns may lie outside of x."""
        plan = self.plan
        width = min(plan.lanes, plan.inputs)
        whole, rest = divmod(plan.inputs, width)

        def one(at: At, first: Expr, size: int) -> Stmt:
            return self._channels(at, v, (row, position, group), first, size)

        def of_unit(at: At) -> Stmt:
            parts = [ranged(0, whole, lambda i: one(at, i * width, width), name="vector")]
            return sequence([*parts, one(at, whole * width, rest)] if rest else parts)

        return ranged(0, plan.span, lambda u: of_unit(_of_unit(at, u)), name="unit")

    def _channels(self, at: At, v: Any, where: tuple[Expr, Expr, Expr], channel: Expr, width: int) -> Stmt:
        from tvm import tirx

        plan, columns, (row, position, group) = self.plan, self.plan.columns, where
        bind = Binder(f"float32x{width}" if width > 1 else "float32")
        first = (at[1] + at[2]) * plan.inputs + channel
        zero = tirx.const(0.0, "float32")
        zero = tirx.Broadcast(zero, width) if width > 1 else zero

        def read(column: Expr) -> Expr:
            if isinstance(column, int) and not 0 <= column < columns.size:
                return zero
            place = (0, position, column)[3 - self.spec.rank :]
            value = bind(tirx.BufferLoad(self.arguments.source, [at[0], *place, _side_by_side(first, width)]))
            return value if plan.shared == 1 else bind(tirx.Shuffle([value], plan.together))

        for number in range(columns.group):
            start = columns.input(group, number)
            made = [read(start + i * columns.stride) for i in range(columns.inputs(number))]
            if columns.filter is not None and number not in columns.plain:
                made = columns.filter.transform_input(made, bind)
            first_place = columns.alpha if number in columns.plain else 0
            for place, value in enumerate(made, first_place):
                at_value = group * (columns.step if columns.m > 1 else 1) + columns.within(number)
                base = row * plan.v_row + at_value * plan.inputs + channel
                entry = at[2] * columns.places + place
                bind.store(v, [_side_by_side(entry * plan.v_point + base, width)], value)
        return sequence(bind.statements)

    def _products(self, at: At, v: Any, m: Any, row: Expr) -> Stmt:
        """M of a row tile: for each point a matrix product."""
        plan, columns = self.plan, self.plan.columns

        def of(places: range, parts: range) -> Stmt:
            def tile(place: Expr, number: Expr, block: Expr) -> Stmt:
                start = least(number * plan.wide, columns.tiles - plan.wide)
                return named(start, "tile", lambda t: self._tile(at, (v, m), (row, t), (place, block), parts))

            def place(p: Expr) -> Stmt:
                each = lambda i: ranged(0, plan.passes, lambda b: tile(p, i, b), name="pass")  # noqa: E731
                return ranged(0, ceil_div(columns.tiles, plan.wide), each, name="tiles")

            return ranged(places.start, places.stop, place, name="place")

        return sequence([of(places, parts) for places, parts in columns.products_of])

    def _tile(
        self, at: At, buffers: tuple[Any, Any], place: tuple[Expr, Expr], index: tuple[Expr, Expr], parts: range
    ) -> Stmt:
        """A register tile: M of `high` rows and `wide` tiles of columns at a place, of a pass of the channels."""
        from tvm import tirx

        plan, (v, m), (_, tile), (point, block) = self.plan, buffers, place, index
        whole = tirx.Ramp(0, 1, plan.lanes)
        sums = [(r, t, i) for r in range(plan.high) for t in range(plan.wide) for i in range(plan.vectors)]

        def body(acc: list[Any]) -> Stmt:
            zero = tirx.Broadcast(tirx.const(0.0, "float32"), plan.lanes)
            clear = [tirx.BufferStore(each, zero, [whole]) for each in acc]
            kept = []
            for (r, t, i), each in zip(sums, acc):
                base = (r * plan.columns.tiles + tile + t) * plan.outputs + (block * plan.vectors + i) * plan.lanes
                kept.append(
                    tirx.BufferStore(
                        m,
                        tirx.BufferLoad(each, [whole]),
                        [tirx.Ramp((at[2] * plan.columns.places + point) * plan.m_point + base, 1, plan.lanes)],
                    )
                )
            named_sums = dict(zip(sums, acc))
            step = lambda ic: self._step(named_sums, at, v, place, index, parts, ic)  # noqa: E731
            return sequence([*clear, ranged(0, plan.depth, step, name="ic"), *kept])

        return vector_sums(len(sums), plan.lanes, body)

    def _step(
        self,
        acc: dict[tuple[int, int, int], Any],
        at: At,
        v: Any,
        place: tuple[Expr, Expr],
        index: tuple[Expr, Expr],
        parts: range,
        ic: Expr,
    ) -> Stmt:
        """All taps of an input channel: each value of V is spread over the lanes once for all sums that it is in."""
        from tvm import tirx

        plan, (row, tile), (point, block) = self.plan, place, index
        rows, columns, lanes = plan.rows, plan.columns, plan.lanes
        bind, filters = Binder(f"float32x{lanes}"), dict[tuple[int, int, int], Expr]()
        of = columns.alpha if columns.plain and parts == columns.plain else point
        whole = [tirx.Ramp(0, 1, lanes)]
        meets: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
        for t in range(plan.wide):
            for k in parts:
                for r in range(plan.high):
                    for kh in range(rows.taps):
                        where = (t * columns.step + columns.offset(k), r * rows.stride + kh * rows.dilation)
                        if not plan.still or rows.inside(where[1]):
                            meets.setdefault(where, []).append((r, kh, t, k))
        for (column, down), uses in meets.items():
            entry = self._entry(row * rows.stride + down, tile * columns.step + column, ic)
            value = bind(self._spread(v, at[2] * columns.places + point, entry))
            for r, kh, t, k in uses:
                for i in range(plan.vectors):
                    if (kh, k, i) not in filters:
                        channels = tirx.Ramp(i * lanes, 1, lanes)
                        taps = kh * columns.side_by_side + columns.within(k)
                        filters[kh, k, i] = bind(
                            tirx.BufferLoad(self.arguments.weight, [at[1] + at[2], of, block, ic, taps, channels])
                        )
                    total = tirx.BufferLoad(acc[r, t, i], whole)
                    bind.store(acc[r, t, i], whole, total + value * filters[kh, k, i])
        return sequence(bind.statements)

    def _entry(self, row: Expr, value: Expr, ic: Expr) -> Expr:
        """Where in V, from a place's first entry on, is an input channel of a value of a row."""
        return row * self.plan.v_row + value * self.plan.inputs + ic * self.plan.shared

    def _spread(self, v: Any, point: Expr, first: Expr) -> Expr:
        """An input channel of each group, repeated: a load of 4, 8 or 16 bytes that are broadcast."""
        from tvm import tirx

        shared, lanes = self.plan.shared, self.plan.lanes
        first = point * self.plan.v_point + first
        if shared == 1:
            return tirx.Broadcast(tirx.BufferLoad(v, [first]), lanes)
        value = tirx.BufferLoad(v, [tirx.Ramp(first, 1, shared)])
        return tirx.Shuffle([value] * (lanes // shared), [lane % shared for lane in range(lanes)])

    def _rows(self, at: At, m: Any, row: Expr) -> Stmt:
        """The outputs of a row tile."""
        plan, columns = self.plan, self.plan.columns
        whole, rest = divmod(columns.out, columns.m)

        def outputs(r: Expr) -> Stmt:
            def vector(tile: Expr, count: int) -> Stmt:
                def of_unit(at: At) -> Stmt:
                    one = lambda i: self._outputs(at, m, (row, r), tile, i * plan.lanes, count)  # noqa: E731
                    return ranged(0, plan.outputs // plan.lanes, one, name="vector")

                return ranged(0, plan.span, lambda u: of_unit(_of_unit(at, u)), name="unit")

            parts = [ranged(0, whole, lambda tile: vector(tile, columns.m), name="tile")] if whole else []
            return sequence([*parts, vector(whole, rest)] if rest else parts)

        return ranged(0, plan.high, outputs, name="output_row")

    def _outputs(self, at: At, m: Any, rows: tuple[Expr, Expr], tile: Expr, channel: Expr, count: int) -> Stmt:
        """The first `count` outputs of a tile, of a vector of channels."""
        from tvm import tirx

        plan, columns, lanes = self.plan, self.plan.columns, self.plan.lanes
        bind = Binder(f"float32x{lanes}")
        base = (rows[1] * columns.tiles + tile) * plan.outputs + channel
        values = [
            bind(tirx.BufferLoad(m, [tirx.Ramp((at[2] * columns.places + point) * plan.m_point + base, 1, lanes)]))
            for point in range(columns.places)
        ]
        made = values if columns.filter is None else columns.filter.transform_output(values[: columns.alpha], bind)
        if columns.plain:
            made = [value + plain for value, plain in zip(made, values[columns.alpha :])]
        return self._kept(at, bind, made[:count], (rows[0] + rows[1], tile * columns.m), channel)

    def _kept(self, at: At, bind: Binder, made: list[Expr], place: tuple[Expr, Expr], channel: Expr) -> Stmt:
        """Outputs side by side, from a place of a task's rows on, of a vector of channels, in y."""
        from tvm import tirx

        plan, lanes, count = self.plan, self.plan.lanes, len(made)
        if plan.shared > 1:
            made = [tirx.Shuffle([bind(value)], plan.apart) for value in made]
        oh, oc = at[3] + place[0], (at[1] + at[2]) * plan.outputs + channel

        def output(sums: Callable[[Expr], Expr], i: Expr, lane: Expr) -> Stmt:
            where = (0, oh, place[1] + i)[3 - self.spec.rank :]
            value = epilogue(self.arguments, sums(lane), at[0], oc + lane, where)
            return tirx.BufferStore(self.y, value, [at[0], *where, oc + lane])

        if self.spec.activation in LONG_ACTIVATIONS:  # once in the code
            return allocated((count, lanes), "row", "local", lambda row: self._rolled(bind, row, made, output))
        return vector_sums(count, lanes, lambda sums: self._unrolled(bind, sums, made, output))

    def _rolled(self, bind: Binder, row: Any, made: Sequence[Expr], output: Callable[..., Stmt]) -> Stmt:
        from tvm import tirx

        lanes = self.plan.lanes
        for i, value in enumerate(made):
            bind.store(row, [i, tirx.Ramp(0, 1, lanes)], value)

        def one(i: Expr) -> Stmt:
            return ranged(
                0, lanes, lambda lane: output(lambda at: tirx.BufferLoad(row, [i, at]), i, lane), "VECTORIZED"
            )

        return sequence([*bind.statements, ranged(0, len(made), one, name="i")])

    def _unrolled(self, bind: Binder, sums: list[Any], made: Sequence[Expr], output: Callable[..., Stmt]) -> Stmt:
        from tvm import tirx

        lanes = self.plan.lanes
        for each, value in zip(sums, made):
            bind.store(each, [tirx.Ramp(0, 1, lanes)], value)
        stored = []
        for i, each in enumerate(sums):
            read = lambda at, each=each: tirx.BufferLoad(each, [at])  # noqa: E731
            stored.append(ranged(0, lanes, lambda lane, i=i, read=read: output(read, i, lane), "VECTORIZED"))  # type: ignore[misc]
        return sequence([*bind.statements, *stored])


def _of_unit(at: At, number: Expr) -> At:
    """The place of a unit of a task."""
    return at[0], at[1], number, at[3]


def _side_by_side(first: Expr, count: int) -> Expr:
    """The index of so many elements; TVM 0.27 has no vectors of one."""
    from tvm import tirx

    return tirx.Ramp(first, 1, count) if count > 1 else first
