"""A tile of products by Strassen's algorithm: sums in registers, what is kept of them, and what factors are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from convtune.schedules.past_caches import tasks_past
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, sequence, vectorized
from convtune.schedules.strassen_plan import STEPS, X_BLOCKS, X_SUMS, Factors


@dataclass(frozen=True)
class Tile:
    """The sums of a tile and a block of output channels, in registers, and what is kept of them in a buffer.

    sums: by column and vector. last: of the blocks of channels.
    """

    plan: Factors
    m: Any
    sums: Sequence[tuple[tuple[int, int], Any]]
    block: Expr
    vectors: int
    last: bool = False

    def steps(self, multiplied: Callable[[int], Stmt], stored: Callable[[str, str], Stmt]) -> Stmt:
        """All steps. multiplied(number): adds the product of one. stored(y, kept value): that block of the output."""
        statements = []
        for number, step in enumerate(STEPS):
            statements += [] if step.begin == "sums" else [self.begin(step.begin)]
            statements.append(multiplied(number))
            statements += [stored(*step.with_kept)] if step.with_kept[0] else []
            statements += [self.add(step.add)] if step.add else []
            statements += [self.keep(step.keep)] if step.keep else []
            statements += [stored(step.y, "")] if step.y else []
        return sequence(statements)

    def kept(self, name: str, place: tuple[Expr, int], lane: Expr) -> Expr:
        """A kept value; "0" is that."""
        from tvm import tirx

        if name == "0":
            return tirx.const(0.0, "float32")
        return tirx.BufferLoad(self.m, [self.plan.kept.index(name), self._row(place), lane])

    def sum(self, number: int, with_kept: str, lane: Expr) -> Expr:
        """One of the sums, with a kept value or none."""
        from tvm import tirx

        place, total = self.sums[number]
        value = tirx.BufferLoad(total, [lane])
        return value + self.kept(with_kept, place, lane) if with_kept else value

    def begin(self, name: str) -> Stmt:
        """sums = a kept value."""

        def body(bind: Binder, lane: Expr) -> None:
            for place, total in self.sums:
                bind.store(total, [lane], self.kept(name, place, lane))

        return vectorized(self.plan.lanes, body)

    def add(self, name: str) -> Stmt:
        """sums += a kept value."""

        def body(bind: Binder, lane: Expr) -> None:
            for number, (_, total) in enumerate(self.sums):
                bind.store(total, [lane], self.sum(number, name, lane))

        return vectorized(self.plan.lanes, body)

    def keep(self, name: str, value: Callable[[int, Expr], Expr] | None = None) -> Stmt:
        """Keeps the sums, or value(number of a vector, lane), as `name`."""

        def body(bind: Binder, lane: Expr) -> None:
            for number, (place, _) in enumerate(self.sums):
                at = [self.plan.kept.index(name), self._row(place), lane]
                bind.store(self.m, at, value(number, lane) if value else self.sum(number, "", lane))

        return vectorized(self.plan.lanes, body)

    def _row(self, place: tuple[Expr, int]) -> Expr:
        """Of the buffer, for a column and a vector."""
        return place[0] * self.plan.vectors + place[1]


def tasks(plan: Factors, number: int, body: Callable[[Expr, Any, Any], Stmt]) -> Stmt:
    """body(task, V, M) of so many parallel tasks."""

    def task(which: Expr) -> Stmt:
        def with_v(v: Any) -> Stmt:
            return allocated(plan.m_shape, "m", "global", lambda m: body(which, v, m))

        return allocated(plan.v_shape, "v", "global", with_v)

    return tasks_past(number, task, plan.lanes, plan.past, "task")


def factors(plan: Factors, blocks: Sequence[Expr | None]) -> list[Expr]:
    """What V has of an element of each block of X, in its order; None is zero."""
    from tvm import tirx

    sums = [signed_sum(left_signs(factor), blocks) for factor in plan.stored]
    return [tirx.const(0.0, "float32") if each is None else each for each in sums]


def left_signs(factor: str) -> Sequence[int]:
    """Of the blocks of X in a left factor: a sum or a block itself."""
    return X_SUMS.get(factor) or [int(name == factor) for name in X_BLOCKS]


def signed_sum(signs: Sequence[int], values: Sequence[Expr | None]) -> Expr | None:
    """The sum of the values with signs 1, 0 or -1; None is zero."""
    total = None
    for sign, value in zip(signs, values):
        if sign and value is not None:
            summand = value if sign > 0 else -value
            total = summand if total is None else total + summand
    return total
