"""The loops of Strassen's algorithm in two levels: each of the seven products is one of halves by seven of quarters.

The outer level's sums of X are made with the inner one's; what it keeps of its sums is in the second cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convtune.schedules.ranges import named, part
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, loop, sequence, vectorized, when
from convtune.schedules.strassen_loops import Kernel
from convtune.schedules.strassen_plan import KEPT, OUTER_STEPS, PRODUCTS
from convtune.schedules.strassen_tile import Tile, left_signs, signed_sum

TABLE_BITS = 4  # of an entry: 7 of them fit an integer


class TwiceKernel(Kernel):
    """Writes the statements of a plan of two levels: `statement` is all of them."""

    def _task(self, task: Expr, v: Any, m: Any) -> Stmt:
        """Step after step of the outer level, each for all of the task's blocks of channels."""
        plan = self.plan
        tables = {
            "begin": [_place_of(step.begin) for step in OUTER_STEPS],
            "keep": [_place_of(step.keep) for step in OUTER_STEPS],
            "extra": [_place_of(step.extra) for step in OUTER_STEPS],
            "rows": [int(step.written[:1] == "2") for step in OUTER_STEPS],
            "channels": [int(step.written[1:] == "2") for step in OUTER_STEPS],
        }

        def step(number: Expr) -> Stmt:
            self.step = number
            return _looked_up(tables, number, inner)

        def inner(found: Mapping[str, Expr]) -> Stmt:
            self.found = found
            return super(TwiceKernel, self)._task(task, v, m)

        def steps(kept: Any) -> Stmt:
            self.kept = kept
            return loop(PRODUCTS, step, name="step")

        def from_block(first: Expr) -> Stmt:
            self.first_block = first
            return allocated(plan.outer_shape, "outer", "global", steps)

        first, _ = part(plan.blocks, plan.parts, task % plan.parts)
        return named(first, "first_block", from_block)

    def _sums(self, v: Any, i: Expr, first: Expr) -> Stmt:
        def of_step(number: int) -> Stmt:
            self.outer_left = OUTER_STEPS[number].left
            return self._step_sums(v, i, first)

        return _switch([([self.step == number], of_step(number)) for number in range(PRODUCTS)])

    def _step_sums(self, v: Any, i: Expr, first: Expr) -> Stmt:
        """V of a tile, of the outer step whose left factor is `outer_left`."""
        return super()._sums(v, i, first)

    def _block(self, block: tuple[int, int], at: tuple[Expr, Expr, Expr], complete: bool) -> Expr | None:
        """An element of the outer step's left factor, which has blocks as X has in one level."""
        plan, (position, tap, ic) = self.plan, at
        values = []
        for sign, (rows, channels) in zip(left_signs(self.outer_left), itertools.product(range(2), range(2))):
            outer = position + rows * 2 * plan.columns, tap, ic + channels * 2 * plan.half
            values.append(super()._block(block, outer, complete or not channels) if sign else None)
        return signed_sum(left_signs(self.outer_left), values)

    def _filter(self, tile: Tile, number: int, k: Expr, channel: Expr) -> Expr:
        return super()._filter(tile, self.step * PRODUCTS + number, k, channel)

    def _turn(self, block: Expr, number: int) -> Expr:
        return self.step * (PRODUCTS * self.plan.blocks) + super()._turn(block, number)

    def _place(self, y: str) -> tuple[Expr, Expr]:
        rows, channels = super()._place(y)
        outer_rows, outer_channels = self.found["rows"], self.found["channels"]
        return outer_rows * (2 * self.plan.columns) + rows, outer_channels * (2 * self.plan.channels) + channels

    def _outputs_ahead(self, tile: Tile, number: int, first: Expr) -> list[Stmt]:
        writing = self._is_one_of([i for i, step in enumerate(OUTER_STEPS) if step.written])
        return [when([writing], ahead) for ahead in super()._outputs_ahead(tile, number, first)]

    def _is_one_of(self, numbers: Sequence[int]) -> Expr:
        """Whether the outer step is."""
        from tvm import tirx

        return tirx.any(*(self.step == number for number in numbers))

    def _stored(self, tile: Tile, y: str, at: tuple[Expr, Expr], with_kept: str = "") -> Stmt:
        """The outer step, from its sums of a quarter on.

        The code of the first step is its own: with a kept value that is cleared for it, it was that of two others, and
        builds took 1.8 s for 2.2, but kernels 1.01 to 1.05 times as long.
        """
        kinds = sorted({step.kind for step in OUTER_STEPS})
        cases = []
        for kind in kinds:
            numbers = [i for i, step in enumerate(OUTER_STEPS) if step.kind == kind]
            cases.append(([self._is_one_of(numbers)], self._stored_as(kind, tile, y, at, with_kept)))
        return _switch(cases)

    def _stored_as(self, kind: Sequence[bool], tile: Tile, y: str, at: tuple[Expr, Expr], with_kept: str) -> Stmt:
        """Of outer steps of that kind, whose kept values are as `found` says."""
        from tvm import tirx

        plan, (i, _) = self.plan, at
        begins, keeps, adds, writes, has_extra = kind
        quarter = sum(weight * (half == "2") for weight, half in zip((2, 1), y))

        def index(name: str, number: int, lane: Expr) -> list[Expr]:
            column, cv = tile.sums[number][0]
            row = column * plan.vectors + cv
            return [self.found[name], i, tile.block - self.first_block, quarter, row, lane]

        def with_outer(value: Expr, given: bool, name: str, number: int, lane: Expr) -> Expr:
            return value + tirx.BufferLoad(self.kept, index(name, number, lane)) if given else value

        def total(number: int, lane: Expr) -> Expr:
            return with_outer(tile.sum(number, with_kept, lane), begins, "begin", number, lane)

        def output(number: int, lane: Expr) -> Expr:
            return with_outer(total(number, lane), has_extra, "extra", number, lane)

        def keep(bind: Binder, lane: Expr) -> None:
            for number in range(len(tile.sums)):
                value = with_outer(total(number, lane), adds, "keep", number, lane)
                bind.store(self.kept, index("keep", number, lane), value)

        statements = [self._written(tile, y, at, output)] if writes else []
        return sequence([*statements, *([vectorized(plan.lanes, keep)] if keeps else [])])


def _place_of(name: str) -> int:
    """Of a kept value; of none any."""
    return KEPT.index(name) if name else 0


def _looked_up(tables: Mapping[str, Sequence[int]], number: Expr, body: Callable[[Mapping[str, Expr]], Stmt]) -> Stmt:
    """body(entry number `number` of each table).

    Tables are integers of a few bits an entry: with a choice between seven numbers in indices TVM 0.27 took 24 s.
    """
    from tvm import tirx

    def found(names: Sequence[str], entries: Mapping[str, Expr]) -> Stmt:
        if not names:
            return body(entries)
        name, *rest = names
        table = sum(entry << TABLE_BITS * i for i, entry in enumerate(tables[name]))
        shifted = tirx.shift_right(tirx.const(table, "int32"), number * TABLE_BITS)
        entry = tirx.bitwise_and(shifted, tirx.const(2**TABLE_BITS - 1, "int32"))
        return named(entry, name, lambda variable: found(rest, {**entries, name: variable}))

    return found(list(tables), {})


def _switch(cases: Sequence[tuple[Sequence[Expr], Stmt]]) -> Stmt:
    """The statement of the first case whose conditions hold, or of the last one."""
    (conditions, statement), *rest = cases
    return when(conditions, statement, _switch(rest)) if rest else statement
