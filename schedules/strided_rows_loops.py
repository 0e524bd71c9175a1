"""The loops of `strided_rows`: tasks, their rows of inputs, and the products of a row of outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.pointwise_planes_loops import Kernel as Products
from convtune.schedules.pointwise_planes_loops import Place
from convtune.schedules.ranges import least, named, ranged
from convtune.schedules.statements import (
    Binder,
    Expr,
    Stmt,
    allocated,
    cleared,
    loop,
    nest,
    sequence,
    unflat,
    vectorized,
    when,
    zeros,
)

from convtune.expression import widened
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.schedules.strided_rows_plan import Plan
    from convtune.schedules.written import Buffers

    from convtune.spec import ConvSpec


class Kernel(Products):
    """Products of taps of rows, where `pointwise_planes` has those of x. image: x, (n, ic, depth, row, column)."""

    def __init__(self, spec: ConvSpec, plan: Plan, buffers: Buffers, image: Any, y: Any) -> None:
        super().__init__(spec, plan.products, False, buffers, y)
        self.rows_plan, self.image = plan, image

    def statement(self) -> Stmt:
        plan = self.rows_plan

        def task(number: Expr) -> Stmt:
            n, d, block = unflat(number, plan.tasks)
            high, out = block * plan.rows, plan.axes[1].out
            rows = least(plan.rows, out - high) if out % plan.rows else plan.rows
            return named(rows, "rows", lambda rows: self._of_rows(n, d, high, rows))

        return loop(count(plan.tasks), task, "PARALLEL", "task")

    def _of_rows(self, n: Expr, d: Expr, high: Expr, rows: Expr) -> Stmt:
        """A task: so many rows of outputs from `high` on."""
        plan = self.rows_plan

        def with_pad(pad: Any) -> Stmt:
            self.pad = pad
            return sequence([self._filled(n, d, high), self._blocks(n, d, high, rows)])

        return allocated(plan.pad_shape, "pad", "global", with_pad)

    def _blocks(self, n: Expr, d: Expr, high: Expr, rows: Expr) -> Stmt:
        plan = self.plan
        _, row, column = self.rows_plan.axes

        def of_row(block: Expr, local: Expr) -> Stmt:
            def tiles(first: Expr) -> Stmt:
                self.local, self.first = local, first
                placed = lambda i: self._placed(n, 0, block, i, 0, None, True)  # noqa: E731
                return ranged(0, plan.tiles, placed, name="tile")

            return named((d * row.out + high + local) * column.out, "first", tiles)

        def of_block(block: Expr) -> Stmt:
            return ranged(0, rows, lambda local: of_row(block, local), name="row")

        return ranged(0, plan.blocks, of_block, name="block")

    def _sums(self, acc: Sequence[Any], place: Place, panel: Any, fills: bool) -> Stmt:
        from tvm import tirx

        plan, (depth, row, column) = self.plan, self.rows_plan.axes

        def taps(index: tuple[Expr, ...]) -> Stmt:
            ic, kd, kh = index
            tap = ((ic * depth.taps + kd) * row.taps + kh) * column.taps
            high = self.local * row.stride + kh * row.dilation

            def body(bind: Binder, lane: Expr) -> None:
                for kw in range(column.taps):
                    shift, residue = divmod(kw * column.dilation, column.stride)
                    inputs = [
                        bind(
                            tirx.BufferLoad(
                                self.pad, [ic, kd, high, residue, place.start + shift + v * plan.lanes + lane]
                            )
                        )
                        for v in range(place.vectors)
                    ]
                    for i in range(plan.outputs):
                        filters = widened(tirx.BufferLoad(self.arguments.weight, [0, place.block, tap + kw, i]))
                        for each, value in zip(acc[i * place.vectors :], inputs):
                            bind.add(each, [lane], value * filters)

            return vectorized(plan.lanes, body)

        summed = nest((*self.rows_plan.pad_shape[:2], row.taps), taps)
        return sequence([*cleared(acc, plan.lanes), summed, *self._stores(acc, place)])

    def _position(self, position: Expr) -> list[Expr]:
        return super()._position(self.first + position)

    def _filled(self, n: Expr, d: Expr, high: Expr) -> Stmt:
        """The inputs of a task, its columns by residue, with zeros around."""
        plan = self.rows_plan
        if plan.inside and str(self.image.dtype) == "float32":
            return nest(plan.pad_shape[:3], lambda index: self._row(n, d, high, index, None))

        def through(line: Any) -> Stmt:
            rows = nest(plan.pad_shape[:3], lambda index: self._row(n, d, high, index, line))
            return sequence([*self._around(line), rows])

        return allocated((plan.line,), "line", "global", through)

    @property
    def _columns(self) -> tuple[int, int]:
        """Of a line, those that are inputs."""
        column, size = self.rows_plan.axes[2], self.rows_plan.line
        begin = min(column.before, size)
        return begin, max(begin, min(size, column.before + column.size))

    def _around(self, line: Any) -> list[Stmt]:
        """The zeros of a line."""
        from tvm import tirx

        begin, end = self._columns

        def zero(i: Expr) -> Stmt:
            return tirx.BufferStore(line, tirx.const(0.0, "float32"), [i])

        sides = (0, begin), (end, self.rows_plan.line)
        return [ranged(*side, zero, name="column") for side in sides if side[0] < side[1]]

    def _row(self, n: Expr, d: Expr, high: Expr, index: tuple[Expr, ...], line: Any) -> Stmt:
        """A row of inputs, through a line where columns read zeros. index: ic, kd, row of inputs."""
        from tvm import tirx

        plan, (ic, kd, i) = self.rows_plan, index
        depth, row, column = plan.axes
        at = [n, ic, depth.first(d) + kd * depth.dilation, row.first(high) + i]
        inside = [at[2] >= 0, at[2] < depth.size] if depth.all_valid < depth.out * depth.taps else []
        inside += [at[3] >= 0] if row.before else []
        inside += [at[3] < row.size] if row.first((plan.tasks[2] - 1) * plan.rows) + plan.input_rows > row.size else []

        def copied(c: Expr) -> Stmt:
            return tirx.BufferStore(line, widened(tirx.BufferLoad(self.image, [*at, c - column.before])), [c])

        if line is None:
            value = self._residues_of_x(index, at)
        else:
            begin, end = self._columns
            copy = [ranged(begin, end, copied, name="column")] if begin < end else []
            pieces = self._residues(index, plan.pitch // self.plan.lanes, lambda at: tirx.BufferLoad(line, [at]))
            value = sequence([*copy, pieces])
        nothing = self._residues(index, plan.pitch // self.plan.lanes, lambda _: zeros(self.plan.lanes))
        return when(inside, value, nothing if inside else None)

    def _residues_of_x(self, index: tuple[Expr, ...], at: list[Expr]) -> Stmt:
        """A row as it lies, of which the last vectors begin so much earlier that they end with it."""
        from tvm import tirx

        plan, lanes = self.rows_plan, self.plan.lanes
        read = lambda ramp: tirx.BufferLoad(self.image, [*at, ramp])  # noqa: E731
        whole = (plan.columns - 1) // lanes
        pieces = [self._residues(index, whole, read)] if whole else []
        return sequence([*pieces, self._piece(index, plan.columns - lanes, read, plan.beyond)])

    def _residues(self, index: tuple[Expr, ...], pieces: int, read: Callable[[Expr], Expr]) -> Stmt:
        """So many vectors of each residue of a row. read(ramp): elements of it side by side."""
        return loop(pieces, lambda i: self._piece(index, i * self.plan.lanes, read, 0), name="piece")

    def _piece(self, index: tuple[Expr, ...], column: Expr, read: Callable[[Expr], Expr], earlier: int) -> Stmt:
        """A vector of each residue: every stride-th element of as many vectors as the stride.

        earlier: elements that are not there at the end of a row; vectors begin so much earlier, and the last lane of
        some residues, that no output uses, repeats an element.
        """
        from tvm import tirx

        stride, lanes = self.rows_plan.axes[2].stride, self.plan.lanes
        bind = Binder(f"float32x{lanes}")
        starts = [column * stride - earlier + i * lanes for i in range(stride)]
        loads = [bind(read(tirx.Ramp(start, 1, lanes))) for start in starts]
        for residue in range(stride):
            taken = [min(residue + earlier + i * stride, stride * lanes - 1) for i in range(lanes)]
            value = tirx.Shuffle(loads, taken) if stride > 1 else loads[0]
            bind.store(self.pad, [*index, residue, tirx.Ramp(column, 1, lanes)], value)
        return sequence(bind.statements)
