"""Minimal filtering's products: for each point a matrix product, in register tiles of tiles x channels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from convtune.schedules.filtering_ahead import fetching_weights
from convtune.schedules.filtering_beside import Beside
from convtune.schedules.filtering_places import place_of
from convtune.schedules.filtering_plan import Plan
from convtune.schedules.statements import (
    Binder,
    Expr,
    Stmt,
    allocated,
    flat,
    loop,
    nest,
    sequence,
    unflat,
    vector_sums,
    vectorized,
    when,
)

from convtune.expression import widened

Place = Callable[[int, int, Expr], tuple[Any, list[Expr]]]


def products(
    plan: Plan,
    v: Callable[..., tuple[Any, Any]],
    u: Any,
    m: Any,
    task: Expr,
    number: Expr,
    beside: Beside | None = None,
) -> Stmt:
    """M[point, tile, channel of the pass] = sum V[point, tile, part, ic] * U of the pass with that number.

    Of a task's block of tiles; zeros where all tiles of a register tile need no products at a point.
    """

    def tile(index: Sequence[Expr]) -> Stmt:
        point, block, rows = index
        run = (number * plan.per_pass + block) // plan.blocks if plan.runs > 1 else 0
        at, first = (number, point, block, rows), task * plan.block
        return _sums(
            plan,
            plan.weights_ahead or beside is not None,
            lambda acc: _register_tile(plan, v, (u, m, acc), at, run, first, beside),
        )

    return nest([plan.points, plan.per_pass, plan.block_rows // plan.rows], tile)


def _sums(plan: Plan, fetching: bool, body: Callable[[Place], Stmt]) -> Stmt:
    """body(acc): acc(row, vector, lane) is the place of a sum, a buffer and indices.

    In one buffer; but each vector in its own where a sum fetches anything: LLVM 22 stores the sums at each step of
    such a loop that it does not know as registers beforehand, for all it knows of a prefetch.
    """
    shape = (plan.rows, plan.vectors, plan.lanes)
    if not fetching:
        return allocated(shape, "acc", "local", lambda acc: body(lambda r, cv, lane: (acc, [r, cv, lane])))
    return vector_sums(
        plan.rows * plan.vectors,
        plan.lanes,
        lambda sums: body(lambda r, cv, lane: (sums[r * plan.vectors + cv], [lane])),
    )


def _register_tile(
    plan: Plan,
    v: Callable[..., tuple[Any, Any]],
    buffers: tuple[Any, Any, Place],
    index: tuple[Expr, ...],
    run: Expr,
    first: Expr,
    beside: Beside | None,
) -> Stmt:
    from tvm import tirx

    (u, m, acc), (number, point, block, rows) = buffers, index
    group = block // (plan.blocks * plan.phases) if plan.groups > 1 else 0  # of the pass
    apart = plan.steps if plan.together > 1 else plan.v_channels
    window = plan.window(run % plan.phases) * (plan.taps * plan.v_channels) if plan.windows > 1 else 0
    places = list(itertools.product(range(plan.rows), range(plan.vectors)))

    def clear(bind: Binder, lane: Expr) -> None:
        for r, cv in places:
            bind.store(*acc(r, cv, lane), tirx.const(0.0, "float32"))

    def reduced(parts: Sequence[Expr]) -> Stmt:
        part = flat(parts, plan.parts_apart)
        summed = functools.partial(beside.summed, index, part) if beside else functools.partial(loop, plan.steps)
        return when(nonzero(plan, point, parts, run), summed(lambda ic: step(part, ic)))

    def step(part: Expr, ic: Expr) -> Stmt:
        at = (number, point, block, part * plan.steps + ic)

        def body(bind: Binder, lane: Expr) -> None:
            filters = [bind(widened(tirx.BufferLoad(u, [*at, cv * plan.lanes + lane]))) for cv in range(plan.vectors)]
            for r in range(plan.rows):
                source, place = v(point, rows * plan.rows + r, window + part * apart + group * plan.depth + ic)
                value = tirx.BufferLoad(source, list(place))
                for cv in range(plan.vectors):
                    bind.add(*acc(r, cv, lane), value * filters[cv])

        return sequence([*fetching_weights(plan, u, at, rows), vectorized(plan.lanes, body)])

    def keep(bind: Binder, lane: Expr) -> None:
        for r, cv in places:
            at = [point, (rows * plan.rows + r) * plan.m_row + (block * plan.vectors + cv) * plan.lanes + lane]
            bind.store(m, at, tirx.BufferLoad(*acc(r, cv, lane)))

    summed = when(_needed(plan, point, first + rows * plan.rows), nest(plan.parts_apart, reduced))
    parts = [vectorized(plan.lanes, clear), summed, vectorized(plan.lanes, keep)]
    # else LLVM 22 has the sums in registers all along the loop of passes, where what comes next spills
    return sequence([*parts, vectorized(plan.lanes, clear)] if plan.passes > 1 else parts)


def _needed(plan: Plan, point: Expr, first: Expr) -> list[Expr]:
    """That any tile of a register tile, which begins with the `first` one, needs products at a point."""
    from tvm import tirx

    if not plan.leaving_out:
        return []
    points = unflat(point, [axis.alpha for axis in plan.axes])
    ends = [place_of(plan, first), place_of(plan, first + plan.rows - 1)]
    met = []
    for i in plan.leaving_out:
        axis = plan.axes[i]
        whole = [place.residues[i] < axis.full for place in ends]
        met.append(tirx.any(tirx.all(points[i] > 0, points[i] < axis.alpha - 1), *whole))
    return met


def nonzero(plan: Plan, point: Expr, parts: Sequence[Expr], run: Expr) -> list[Expr]:
    """That U is not zero: what lacks its last tap has nothing at infinity, the last point. Only what can fail."""
    from tvm import tirx

    points = unflat(point, [axis.alpha for axis in plan.axes])
    phases = unflat(run % plan.phases, [axis.phases for axis in plan.axes])
    met = []
    for axis, at, part, phase in zip(plan.axes, points, parts, phases):
        if not axis.lacking:
            continue
        finite = [at < axis.alpha - 1] if axis.alpha > 1 else []
        whole = [part < axis.whole] if axis.whole < axis.parts else []
        if axis.short:
            earlier = [part < axis.parts - 1] if axis.parts > 1 else []
            whole.append(tirx.any(*earlier, axis.tapped(phase) >= axis.short))
        met.append(tirx.any(*finite, tirx.all(*whole)))
    return met
