"""The loops of a deformable convolution by two levels of Strassen's algorithm, whose outer steps read kept samples.

Each of these reads up to four samples of four blocks, so they lie side by side.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from convtune.schedules.deformable_strassen_loops import Sampled
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, loop, sequence, vectorized
from convtune.schedules.strassen_plan import X_BLOCKS
from convtune.schedules.strassen_tile import factors, left_signs, signed_sum
from convtune.schedules.strassen_twice_loops import TwiceKernel

if TYPE_CHECKING:
    from convtune.schedules.deformable_strassen_plan import Plan


class SampledTwice(Sampled, TwiceKernel):
    """Writes the statements of a plan of two levels: `statement` is all of them."""

    plan: Plan

    def _part(self, task: Expr, v: Any, m: Any) -> Stmt:
        """Samples of a part of the taps, and all outer steps of these."""

        def sampled(samples: Any) -> Stmt:
            self.samples = samples
            steps = super(SampledTwice, self)._part(task, v, m)
            return sequence([self._tiles(task, self._gathered), steps])

        return allocated(self.plan.samples_shape, "samples", "global", sampled)

    def _gathered(self, i: Expr, first: Expr) -> Stmt:
        """The samples of a tile."""
        plan = self.plan

        def position(rows: Expr, c: Expr) -> Stmt:
            body = partial(self._gathered_piece, (i, first), (rows, c))
            return loop(plan.pieces, lambda piece: loop(plan.taps, partial(body, piece)), name="piece")

        def quarter(rows: Expr) -> Stmt:
            return loop(plan.columns, partial(position, rows), name="column")

        gathered = loop(plan.split, quarter, name="rows")
        return gathered if plan.cuts > 1 else sequence([self._tables(0, first), gathered])

    def _gathered_piece(self, at: tuple[Expr, Expr], place: tuple[Expr, Expr], piece: Expr, tap: Expr) -> Stmt:
        """Of a position, at a tap, some channels of each quarter. place: a quarter of the positions, and one of it."""
        bind, (rows, c) = Binder(), place
        samples = self._samples(bind, at, rows * self.plan.columns + c, piece, tap)

        def vector(bind: Binder, chunk: Expr, lane: Expr, values: list[Expr]) -> None:
            for channels, value in enumerate(values):
                outer, inner = rows // 2 * 2 + channels // 2, rows % 2 * 2 + channels % 2
                bind.store(self.samples, [at[0], chunk, c, outer * len(X_BLOCKS) + inner, lane], value)

        return sequence([*bind.statements, self._chunks(samples, piece, tap, vector)])

    def _sums(self, v: Any, i: Expr, first: Expr) -> Stmt:
        return TwiceKernel._sums(self, v, i, first)

    def _step_sums(self, v: Any, i: Expr, first: Expr) -> Stmt:
        from tvm import tirx

        plan, blocks = self.plan, range(len(X_BLOCKS))
        signs = left_signs(self.outer_left)

        def vector(chunk: Expr, c: Expr) -> Stmt:
            def body(bind: Binder, lane: Expr) -> None:
                def outer_sum(inner: int) -> Expr | None:
                    places = [[i, chunk, c, outer * len(X_BLOCKS) + inner, lane] for outer in blocks]
                    return signed_sum(signs, [tirx.BufferLoad(self.samples, place) for place in places])

                found = [bind(outer_sum(inner)) for inner in blocks]
                for number, total in enumerate(factors(plan, found)):
                    bind.store(v, [number, i, chunk, c, lane], total)

            return vectorized(plan.wide, body)

        chunks = plan.steps // plan.wide
        return loop(chunks, lambda chunk: loop(plan.columns, partial(vector, chunk), name="column"), name="chunk")
