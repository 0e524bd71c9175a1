"""The loops of `rolling_rows`: products of a row into the ring, and the filters along columns and rows from there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from convtune.schedules.depthwise_loops import named, part
from convtune.schedules.rolling_plan import Plan
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, loop, sequence, when
from convtune.schedules.tiling import LONG_ACTIVATIONS

from convtune.expression import Arguments, epilogue

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

OfVectors = Callable[[Expr, Expr, int], Stmt]  # (block, its vector, lanes of that)


class HeldChain(Arguments):
    """The arguments of a kernel of several stages; `source` (x) and `weights` are buffers, the others are read."""

    def __init__(self, spec: ConvSpec, tensors: Arguments, buffers: Sequence[Any]) -> None:
        given = iter(buffers)
        self.spec, self.inputs = spec, {}
        self.source = next(given)
        self.weights = [next(given) for _ in tensors.weights]
        self.biases = [None if bias is None else _reader(next(given)) for bias in tensors.biases]
        self.bias = self.biases[-1]
        self.residual = None if tensors.residual is None else _reader(next(given))


def _reader(buffer: Any) -> Callable[..., Expr]:
    from tvm import tirx

    return lambda *index: tirx.BufferLoad(buffer, list(index))


class Rows:
    """The statements of a plan: `kernel` is all of them.

    ring: (vector of the chunk, slot, column, lane). between: (column with the zeros around, lane), one vector of what
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

        shape = (plan.chunk_blocks * plan.vectors, plan.rows.span, plan.columns.size, plan.lanes)
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
        return self._vector(self.plan.lanes, lambda bind, lane: bind.store(buffer, [*place, lane], zero))

    def _band(self, n: Expr, rows: tuple[Expr, Expr], chunk: Expr) -> Stmt:
        """Input row by input row from the first that the band reads; each that completes an output row makes it."""
        rule, (low, high) = self.plan.rows, rows
        steps = (high - low - 1) * rule.stride + rule.span

        def step(t: Expr) -> Stmt:
            def at(place: Expr) -> Stmt:
                filled = self._filled(n, place, chunk)
                if rule.stride > rule.span:  # rows that no output reads
                    filled = when([t % rule.stride < rule.span], filled)
                over = t - (rule.span - 1)
                complete = [over >= 0, *([over % rule.stride == 0] if rule.stride > 1 else [])]
                return sequence([filled, when(complete, self._filtered(n, low + over // rule.stride, chunk))])

            return named(low * rule.stride + t, "row", at)

        return loop(steps, step, name="step")

    def _filled(self, n: Expr, place: Expr, chunk: Expr) -> Stmt:
        """Row `place`, counted from the zeros above the first, in its slot."""
        rule = self.plan.rows
        slot = place % rule.span
        row = place - rule.before
        made = self._blocks(chunk, lambda block, local, widths: self._products(n, row, slot, block, local, widths))
        outside = [row >= 0] if rule.before else []
        outside += [row < rule.size] if rule.reach > rule.before + rule.size else []
        if not outside:
            return made
        vectors = self.plan.chunk_blocks * self.plan.vectors
        zeros = loop(
            vectors, lambda v: loop(self.plan.columns.size, lambda column: self._zero(self.ring, [v, slot, column]))
        )
        return when(outside, made, zeros)

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

    def _products(self, n: Expr, row: Expr, slot: Expr, block: Expr, local: Expr, widths: Sequence[int]) -> Stmt:
        """A row of the first stage's result, for a block of channels."""
        plan = self.plan
        wide = plan.columns.size

        def tile(number: Expr) -> Stmt:
            shape = (plan.tile, len(widths), plan.lanes)
            return self._start(
                number,
                plan.tile,
                wide,
                lambda at: allocated(
                    shape, "acc", "local", lambda acc: self._tile(acc, (n, row, at), slot, block, local, widths)
                ),
            )

        made = loop(-(-wide // plan.tile), tile, name="tile")
        if not self._is_long(0):
            return made

        def activated(v: int) -> Stmt:
            return loop(wide, lambda w: self._vector(widths[v], lambda bind, lane: keep(bind, v, w, lane)))

        def keep(bind: Binder, v: int, w: Expr, lane: Expr) -> None:
            from tvm import tirx

            place = [local * plan.vectors + v, slot, w, lane]
            value = tirx.BufferLoad(self.ring, place)
            bind.store(self.ring, place, self._epilogue(0, value, (n, row, w), self._channel(block, v, lane)))

        return sequence([made, *map(activated, range(len(widths)))])

    def _tile(self, acc: Any, at: Sequence[Expr], slot: Expr, block: Expr, local: Expr, widths: Sequence[int]) -> Stmt:
        from tvm import tirx

        plan, (n, row, first) = self.plan, at
        places = list(itertools.product(range(plan.tile), range(len(widths))))
        weight = self.arguments.weights[0]

        def clear(bind: Binder, lane: Expr) -> None:
            for column, v in places:
                bind.store(acc, [column, v, lane], tirx.const(0.0, "float32"))

        def products(ic: Expr, bind: Binder, lane: Expr) -> None:
            filters = [bind(tirx.BufferLoad(weight, [block, ic, v * plan.lanes + lane])) for v in range(len(widths))]
            for column, v in places:
                value = tirx.BufferLoad(self.arguments.source, [n, row, first + column, ic])
                total = tirx.BufferLoad(acc, [column, v, lane])
                bind.store(acc, [column, v, lane], total + value * filters[v])

        def kept(column: int, v: int, bind: Binder, lane: Expr) -> None:
            value = tirx.BufferLoad(acc, [column, v, lane])
            if not self._is_long(0):
                value = self._epilogue(0, value, (n, row, first + column), self._channel(block, v, lane))
            bind.store(self.ring, [local * plan.vectors + v, slot, first + column, lane], value)

        steps = loop(
            plan.depth, lambda ic: self._vector(plan.lanes, lambda bind, lane: products(ic, bind, lane)), name="ic"
        )
        stores = [self._vector(widths[v], partial(kept, column, v)) for column, v in places]
        return sequence([self._vector(plan.lanes, clear), steps, *stores])

    def _filtered(self, n: Expr, oh: Expr, chunk: Expr) -> Stmt:
        """A row of the output, from the rows in the ring."""
        return named(
            oh,
            "oh",
            lambda row: self._blocks(
                chunk,
                lambda block, local, widths: (
                    sequence([self._filters(n, row, block, local, v, width) for v, width in enumerate(widths)])
                    if len(set(widths)) > 1
                    else loop(len(widths), lambda v: self._filters(n, row, block, local, v, widths[0]), name="vector")
                ),
            ),
        )

    def _filters(self, n: Expr, oh: Expr, block: Expr, local: Expr, v: Expr, width: int) -> Stmt:
        """A vector of channels of a row: filtered along the columns into `between`, and from there into y."""
        from tvm import tirx

        plan = self.plan
        rows, columns = plan.rows, plan.columns

        def down(bind: Binder, w: Expr, lane: Expr, filters: Sequence[Expr]) -> Callable[[], None]:
            place = [local * plan.vectors + v, None, w, lane]
            slots = [(oh * rows.stride + tap * rows.dilation) % rows.span for tap in range(rows.taps)]
            inputs = [tirx.BufferLoad(self.ring, [place[0], slot, *place[2:]]) for slot in slots]
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
            return self._start(
                number, few, size, lambda at: self._vector(width, lambda bind, lane: body(at, bind, lane))
            )

        return loop(-(-size // few), turn, name="turn")

    def _start(self, number: Expr, few: int, size: int, body: Callable[[Expr], Stmt]) -> Stmt:
        """body(where a turn of so many begins): the last one so early that it ends with the row."""
        from tvm import tirx

        start = number * few
        if size % few == 0:
            return body(start)
        return named(min(start, size - few) if isinstance(start, int) else tirx.min(start, size - few), "at", body)

    def _channel(self, block: Expr, v: Expr, lane: Expr) -> Expr:
        return block * (self.plan.vectors * self.plan.lanes) + v * self.plan.lanes + lane

    def _is_long(self, stage: int) -> bool:
        return self.arguments.spec.stages[stage].activation in LONG_ACTIVATIONS

    def _epilogue(self, stage: int, value: Expr, place: Sequence[Expr], channel: Expr) -> Expr:
        return epilogue(self.arguments, value, place[0], channel, place[1:], stage)

    def _vector(self, width: int, body: Callable[[Binder, Expr], None]) -> Stmt:
        def statements(lane: Expr) -> Stmt:
            bind = Binder()
            body(bind, lane)
            return sequence(bind.statements)

        return loop(width, statements, "VECTORIZED", "lane")


def _dot(inputs: Sequence[Expr], filters: Sequence[Expr]) -> Expr:
    total = inputs[0] * filters[0]
    for value, factor in zip(inputs[1:], filters[1:]):
        total = total + value * factor
    return total
