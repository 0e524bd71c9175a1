"""The loops of `rolling_rows`: products of a row into the ring, and the filters along columns and rows from there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from convtune.schedules.ranges import least, named, part
from convtune.schedules.rolling_plan import Plan
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, loop, sequence, vectorized, when
from convtune.schedules.tiling import LONG_ACTIVATIONS, ceil_div
from convtune.schedules.written import reader

from convtune.expression import Arguments, epilogue

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class HeldChain(Arguments):
    """The arguments of a kernel of several stages; `source` (x) and `weights` are buffers, the others are read."""

    def __init__(self, spec: ConvSpec, tensors: Arguments, buffers: Sequence[Any]) -> None:
        given = iter(buffers)
        self.spec, self.inputs = spec, {}
        self.source = next(given)
        self.weights = [next(given) for _ in tensors.weights]
        self.biases = [None if bias is None else reader(next(given)) for bias in tensors.biases]
        self.bias = self.biases[-1]
        self.residual = None if tensors.residual is None else reader(next(given))


class Rows:
    """The statements of a plan: `kernel` is all of them.

    ring: (vector of the chunk, slot and column, lane). between: (column with the zeros around, lane), a vector of what
    lies between the two filters.
    """

    def __init__(self, plan: Plan, arguments: HeldChain, y: Any) -> None:
        self.plan, self.arguments, self.y = plan, arguments, y
        self.ring: Any = None
        self.between: Any = None

    def kernel(self) -> Stmt:
        plan = self.plan

        def task(number: Expr) -> Stmt:
            chunk, band = number % plan.chunks, number // plan.chunks % plan.bands
            n = number // (plan.chunks * plan.bands)
            return self._with_buffers(lambda: self._band(n, part(plan.rows.out, plan.bands, band), chunk))

        return loop(plan.batch * plan.bands * plan.chunks, task, "PARALLEL", "task")

    def _with_buffers(self, body: Callable[[], Stmt]) -> Stmt:
        plan = self.plan

        def with_ring(ring: Any) -> Stmt:
            self.ring = ring
            return allocated((plan.columns.reach, plan.lanes), "between", "global", with_both)

        def with_both(between: Any) -> Stmt:
            self.between = between
            return sequence([*self._zeros_around(), body()])

        shape = (plan.chunk_blocks * plan.vectors, plan.slots * plan.columns.size, plan.lanes)
        return allocated(shape, "ring", "global", with_ring)

    def _zeros_around(self) -> list[Stmt]:
        columns = self.plan.columns
        first, last = min(columns.before, columns.reach), columns.before + columns.read

        def zeros(at: int, size: int) -> Stmt:
            return loop(size, lambda i: self._zero(self.between, [at + i]))

        return [zeros(at, size) for at, size in ((0, first), (last, columns.reach - last)) if size > 0]

    def _zero(self, buffer: Any, place: Sequence[Expr]) -> Stmt:
        from tvm import tirx

        zero = tirx.const(0.0, "float32")
        return vectorized(self.plan.lanes, lambda bind, lane: bind.store(buffer, [*place, lane], zero))

    def _band(self, n: Expr, rows: tuple[Expr, Expr], chunk: Expr) -> Stmt:
        """Group by group of input rows, from the first that the band reads, and what output rows each completes."""
        plan, (low, high) = self.plan, rows
        rule = plan.rows
        steps = (high - low - 1) * rule.stride + rule.span

        def group(number: Expr) -> Stmt:
            def completed(local: Expr) -> Stmt:
                over = number * plan.group + local - (rule.span - 1)
                conditions = [over >= 0, *([over % rule.stride == 0] if rule.stride > 1 else [])]
                conditions += [over + rule.span <= steps] if plan.group > 1 else []
                return when(conditions, self._filtered(n, low + over // rule.stride, over, chunk))

            def filled(first: Expr) -> Stmt:
                last = low * rule.stride - rule.before + steps
                return sequence([self._filled(n, number, first, last, chunk), loop(plan.group, completed)])

            return named(low * rule.stride - rule.before + number * plan.group, "row", filled)

        return loop((steps + plan.group - 1) // plan.group, group, name="group")

    def _filled(self, n: Expr, number: Expr, first: Expr, last: Expr, chunk: Expr) -> Stmt:
        """The group's rows from `first`, of those before `last`, in their slots: zeros outside of the input.

        Where all are needed and inside they are made at once. Loops as long as those that are would do for all, but
        TVM 0.27 takes a minute to look through their bounds.
        """
        plan = self.plan
        slot = number * plan.group % plan.slots

        def made(row: Expr, at: Expr, rows: int) -> Stmt:
            width = plan.columns.size
            where = (n, row * width, at * width, rows * width)
            return self._blocks(chunk, lambda block, local, widths: self._products(where, block, local, widths))

        def alone(local: Expr) -> Stmt:
            row = first + local
            whole = made(row, slot + local, 1)
            inside = self._inside(row, row)
            filled = when(inside, whole, self._zeros(slot + local)) if inside else whole
            return when([row < last] if plan.group > 1 else [], filled)

        one_by_one = loop(plan.group, alone)
        if plan.group == 1:
            return one_by_one
        end = first + plan.group
        return when([end <= last, *self._inside(first, end - 1)], made(first, slot, plan.group), one_by_one)

    def _inside(self, low: Expr, high: Expr) -> list[Expr]:
        """That rows are in the input, of which the first and the last are these; only what can fail."""
        rule = self.plan.rows
        above = [low >= 0] if rule.before else []
        return above + ([high < rule.size] if rule.reach > rule.before + rule.size else [])

    def _zeros(self, slot: Expr) -> Stmt:
        width = self.plan.columns.size
        return loop(
            self.plan.chunk_blocks * self.plan.vectors,
            lambda v: loop(width, lambda column: self._zero(self.ring, [v, slot * width + column])),
        )

    def _blocks(self, chunk: Expr, body: Callable[[Expr, Expr, Sequence[int]], Stmt]) -> Stmt:
        """body(block, its number in the chunk, lanes of its vectors) for the blocks of a chunk."""
        plan = self.plan
        whole = (plan.lanes,) * plan.vectors

        def one(local: Expr) -> Stmt:
            block = chunk * plan.chunk_blocks + local
            if plan.last_widths == whole:
                return body(block, local, whole)
            last = body(plan.blocks - 1, local, plan.last_widths)
            return last if plan.blocks == 1 else when([block < plan.blocks - 1], body(block, local, whole), last)

        return loop(plan.chunk_blocks, one, name="block")

    def _products(self, at: tuple[Expr, Expr, Expr, int], block: Expr, local: Expr, widths: Sequence[int]) -> Stmt:
        """The first stage's result for a block of channels, at `count` positions of x from `source` on.

        at: (n, source, place in the ring, count).
        """
        plan, (n, source, place, count) = self.plan, at
        shape = (plan.tile, len(widths), plan.lanes)

        def tile(number: Expr) -> Stmt:
            def of(first: Expr) -> Stmt:
                where = (n, source + first, place + first)
                return allocated(shape, "acc", "local", lambda acc: self._tile(acc, where, block, local, widths))

            return self._start(number, plan.tile, count, of)

        made = loop(ceil_div(count, plan.tile), tile, name="tile")
        if not self._is_long(0):
            return made

        def keep(v: int, position: Expr, bind: Binder, lane: Expr) -> None:
            from tvm import tirx

            index = [local * plan.vectors + v, place + position, lane]
            value = tirx.BufferLoad(self.ring, index)
            bind.store(self.ring, index, self._epilogue(0, value, (n, 0, 0), self._channel(block, v, lane)))

        def activated(v: int) -> Stmt:
            return loop(count, lambda position: vectorized(widths[v], partial(keep, v, position)))

        return sequence([made, *map(activated, range(len(widths)))])

    def _tile(self, acc: Any, at: Sequence[Expr], block: Expr, local: Expr, widths: Sequence[int]) -> Stmt:
        from tvm import tirx

        plan, (n, source, place) = self.plan, at
        places = list(itertools.product(range(plan.tile), range(len(widths))))
        weight = self.arguments.weights[0]

        def clear(bind: Binder, lane: Expr) -> None:
            for column, v in places:
                bind.store(acc, [column, v, lane], tirx.const(0.0, "float32"))

        def products(ic: Expr, bind: Binder, lane: Expr) -> None:
            filters = [bind(tirx.BufferLoad(weight, [block, ic, v * plan.lanes + lane])) for v in range(len(widths))]
            for column, v in places:
                value = tirx.BufferLoad(self.arguments.source, [n, 0, source + column, ic])  # rows read as one
                bind.add(acc, [column, v, lane], value * filters[v])

        def kept(column: int, v: int, bind: Binder, lane: Expr) -> None:
            value = tirx.BufferLoad(acc, [column, v, lane])
            if not self._is_long(0):
                value = self._epilogue(0, value, (n, 0, 0), self._channel(block, v, lane))
            bind.store(self.ring, [local * plan.vectors + v, place + column, lane], value)

        steps = loop(plan.depth, lambda ic: vectorized(plan.lanes, partial(products, ic)), name="ic")
        stores = [vectorized(widths[v], partial(kept, column, v)) for column, v in places]
        return sequence([vectorized(plan.lanes, clear), steps, *stores])

    def _filtered(self, n: Expr, oh: Expr, first: Expr, chunk: Expr) -> Stmt:
        """A row of the output, from the rows in the ring; first: the row of the band that its first tap reads."""

        def of_block(at: Sequence[Expr], block: Expr, local: Expr, widths: Sequence[int]) -> Stmt:
            if len(set(widths)) > 1:
                return sequence([self._filters(at, block, local, v, width) for v, width in enumerate(widths)])
            return loop(len(widths), lambda v: self._filters(at, block, local, v, widths[0]), name="vector")

        def of_row(row: Expr) -> Stmt:
            return self._blocks(chunk, partial(of_block, (n, row, first)))

        return named(oh, "oh", of_row)

    def _filters(self, at: Sequence[Expr], block: Expr, local: Expr, v: Expr, width: int) -> Stmt:
        """A vector of channels of a row: filtered along the columns into `between`, and from there into y."""
        from tvm import tirx

        plan, (n, oh, first) = self.plan, at
        rows, columns = plan.rows, plan.columns

        def down(bind: Binder, w: Expr, lane: Expr, filters: Sequence[Expr]) -> Callable[[], None]:
            slots = [(first + tap * rows.dilation) % plan.slots for tap in range(rows.taps)]
            places = [slot * columns.size + w for slot in slots]
            inputs = [tirx.BufferLoad(self.ring, [local * plan.vectors + v, place, lane]) for place in places]
            value = bind(_dot(inputs, filters))
            value = self._epilogue(1, value, (n, oh, w), self._channel(block, v, lane))
            return lambda: bind.store(self.between, [columns.before + w, lane], value)

        def along(bind: Binder, w: Expr, lane: Expr, filters: Sequence[Expr]) -> Callable[[], None]:
            inputs = [
                tirx.BufferLoad(self.between, [w * columns.stride + tap * columns.dilation, lane])
                for tap in range(columns.taps)
            ]
            value = bind(_dot(inputs, filters))
            value = self._epilogue(2, value, (n, oh, w), self._channel(block, v, lane))
            return lambda: bind.store(self.y, [n, oh, w, self._channel(block, v, lane)], value)

        passes = [(1, rows.taps, columns.read, down), (2, columns.taps, columns.out, along)]
        return sequence([self._pass(*one, block, v, width) for one in passes if one[2] > 0])

    def _pass(
        self, stage: int, taps: int, size: int, one: Callable[..., Any], block: Expr, v: Expr, width: int
    ) -> Stmt:
        """one(bind, column, lane, filters) for all columns, a few of them in a turn."""
        from tvm import tirx

        plan = self.plan
        few = 1 if self._is_long(stage) else min(size, plan.unrolled(taps))
        weight = self.arguments.weights[stage]

        def body(first: Expr, bind: Binder, lane: Expr) -> None:
            channel = self._channel(block, v, lane)
            filters = [bind(tirx.BufferLoad(weight, [tap, channel])) for tap in range(taps)]
            for store in [one(bind, first + i, lane, filters) for i in range(few)]:
                store()

        def turn(number: Expr) -> Stmt:
            return self._start(number, few, size, lambda at: vectorized(width, partial(body, at)))

        return loop(ceil_div(size, few), turn, name="turn")

    def _start(self, number: Expr, few: int, size: int, body: Callable[[Expr], Stmt]) -> Stmt:
        """body(where a turn of so many begins): the last one so early that it ends with the size."""
        start = number * few
        return body(start) if size % few == 0 else named(least(start, size - few), "at", body)

    def _channel(self, block: Expr, v: Expr, lane: Expr) -> Expr:
        return block * (self.plan.vectors * self.plan.lanes) + v * self.plan.lanes + lane

    def _is_long(self, stage: int) -> bool:
        return self.arguments.spec.stages[stage].activation in LONG_ACTIVATIONS

    def _epilogue(self, stage: int, value: Expr, place: Sequence[Expr], channel: Expr) -> Expr:
        return epilogue(self.arguments, value, place[0], channel, place[1:], stage)


def _dot(inputs: Sequence[Expr], filters: Sequence[Expr]) -> Expr:
    total = inputs[0] * filters[0]
    for value, factor in zip(inputs[1:], filters[1:]):
        total = total + value * factor
    return total
