"""Grouped convolutions filtered channels first: planes read by vectors of positions, and stored transposed.

    parallel task = (n, unit):
        for ic, vector of columns: V[point, tile of rows, ic, column, group] = B^T x      permutes at borders alone
        for tile of columns:
            M = sums of products, as channels last
            O[position, lane] = A^T M
        for square of positions: y[...] = activation(transposed O + bias + residual)

What is filtered are the columns of the kernel, along which vectors of a row need no permutes. The lanes of sums are
output channels, as channels last, since 7 or 14 columns do not fill a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convtune.schedules.depthwise_planes_loops import lanewise
from convtune.schedules.depthwise_planes_plan import ANY, ZERO, Source, windows
from convtune.schedules.grouped_filtering_loops import At, Kernel
from convtune.schedules.ranges import least, named, ranged
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, sequence, vector_sums
from convtune.schedules.tiling import LONG_ACTIVATIONS, ceil_div
from convtune.schedules.transposing import transposed

from convtune.expression import epilogue


class PlanesKernel(Kernel):
    """The statements of a plan, whose columns are those of the kernel: its rows are positions along x's rows."""

    def _task(self, at: At, rows: Expr) -> Stmt:
        plan = self.plan
        size = plan.outputs * plan.rows.out * plan.columns.out

        def with_outputs(o: Any) -> Stmt:
            self.sums = o
            return sequence([super(PlanesKernel, self)._task(at, rows), self._planes(at)])

        return allocated((size,), "o", "global", with_outputs)

    def _made(self, at: At, v: Any, reached: Expr) -> Stmt:
        """All of V, each vector of a tile in a loop of its own: LLVM takes a minute for one body of them all."""
        plan = self.plan
        last, together = plan.depth - plan.channels_together, plan.channels_together

        def channels(tile: int, vector: int) -> Stmt:
            def some(number: Expr) -> Stmt:
                first = least(number * together, last) if last > 0 else 0
                return named(first, "ic", lambda ic: self._values_of(at, v, ic, tile, vector))

            return ranged(0, ceil_div(plan.depth, together), some, name="channels")

        places = [(t, i) for t in range(plan.columns.groups) for i in range(plan.vectors_of_channel)]
        return sequence([channels(*place) for place in places])

    def _values_of(self, at: At, v: Any, ic: Expr, tile: int, vector: int) -> Stmt:
        """Of some channels of each group, at a vector of their positions."""
        plan, columns = self.plan, self.plan.columns
        bind = Binder(f"float32x{plan.lanes}")
        for number in range(columns.group):
            start = columns.input(tile, number)
            rows = [start + i * columns.stride for i in range(columns.inputs(number))]
            made = [self._read(at, ic, vector, row, bind) for row in rows]
            if columns.filter is not None and number not in columns.plain:
                made = columns.filter.transform_input(made, bind)
            value = tile * (columns.step if columns.m > 1 else 1) + columns.within(number)
            base = value * plan.v_value + ic * (plan.pitch * plan.shared) + vector * plan.lanes
            first = columns.alpha if number in columns.plain else 0
            for place, each in enumerate(made, first):
                bind.store(v, [_vector(place * plan.v_point + base, plan.lanes)], each)
        return sequence(bind.statements)

    def _read(self, at: At, ic: Expr, vector: int, row: int, bind: Binder) -> Expr:
        """A row of x, of the positions of a vector."""
        from tvm import tirx

        plan = self.plan
        source = self._source(vector, row)
        if max(source) < 0:
            return tirx.Broadcast(tirx.const(0.0, "float32"), plan.lanes)
        plane = plan.rows.size * plan.columns.size
        together = (plan.shared - 1) * plan.depth + min(plan.channels_together, plan.depth)
        starts = windows(source, 0, together * plane - plan.lanes, [])
        place = at[0], (at[1] + at[2]) * plan.inputs + ic, 0
        loads = [bind(tirx.BufferLoad(self.arguments.source, [*place, _vector(start, plan.lanes)])) for start in starts]
        return lanewise(source, starts, loads, bind)

    def _source(self, vector: int, row: int) -> Source:
        """For each lane its position, counted from the first channel's plane."""
        plan, found = self.plan, []
        for entry in range(vector * plan.lanes, (vector + 1) * plan.lanes):
            group, position = entry % plan.shared, entry // plan.shared % plan.pitch
            ic, column = entry // plan.shared // plan.pitch, position + plan.skipped - plan.rows.before
            if ic >= plan.depth or position >= plan.rows.reached(plan.rows.out) - plan.skipped:
                found.append(ANY)
            elif 0 <= row < plan.columns.size and 0 <= column < plan.rows.size:
                plane = group * plan.depth + ic
                found.append((plane * plan.columns.size + row) * plan.rows.size + column)
            else:
                found.append(ZERO)
        return tuple(found)

    def _entry(self, row: Expr, value: Expr, ic: Expr) -> Expr:
        plan = self.plan
        return value * plan.v_value + (ic * plan.pitch + row - plan.skipped) * plan.shared

    def _kept(self, at: At, bind: Binder, made: list[Expr], place: tuple[Expr, Expr], channel: Expr) -> Stmt:
        """Outputs one below the other, as positions of O."""
        plan = self.plan
        column, first = place
        base = channel * plan.rows.out * plan.columns.out
        for i, value in enumerate(made):
            position = (first + i) * plan.rows.out + column
            bind.store(self.sums, [_vector(base + position * plan.lanes, plan.lanes)], value)
        return sequence(bind.statements)

    def _planes(self, at: At) -> Stmt:
        """The outputs of a unit, from O."""
        plan, lanes = self.plan, self.plan.lanes
        positions = plan.rows.out * plan.columns.out

        def square(vector: Expr, number: Expr) -> Stmt:
            start = least(number * lanes, positions - lanes) if positions % lanes else number * lanes
            return named(start, "position", lambda position: self._square(at, vector, position))

        def of_vector(vector: Expr) -> Stmt:
            return ranged(0, ceil_div(positions, lanes), lambda number: square(vector, number), name="square")

        return ranged(0, plan.outputs // lanes, of_vector, name="vector")

    def _square(self, at: At, vector: Expr, position: Expr) -> Stmt:
        from tvm import tirx

        plan, lanes = self.plan, self.plan.lanes
        bind = Binder(f"float32x{lanes}")
        base = (vector * plan.rows.out * plan.columns.out + position) * lanes

        def read(row: int, column: int, width: int) -> Expr:
            return tirx.BufferLoad(self.sums, [_vector(base + row * lanes + column, width)])

        made = list(transposed((lanes, lanes), read, bind))

        def output(sums: Callable[[Expr], Expr], i: Expr, lane: Expr) -> Stmt:
            channel = i % plan.shared * plan.run + i // plan.shared if plan.shared > 1 else i
            oc = (at[1] + at[2]) * plan.outputs + vector * lanes + channel
            value = epilogue(self.arguments, sums(lane), at[0], oc, [0, position + lane])
            return tirx.BufferStore(self.y, value, [at[0], oc, 0, position + lane])

        if self.spec.activation in LONG_ACTIVATIONS:
            return allocated((lanes, lanes), "square", "local", lambda row: self._rolled(bind, row, made, output))
        return vector_sums(lanes, lanes, lambda each: self._unrolled(bind, each, made, output))


def _vector(first: Expr, lanes: int) -> Expr:
    from tvm import tirx

    return tirx.Ramp(first, 1, lanes)
