"""What minimal filtering fetches ahead: what the next tile reads of x, and transformed weights that lie in memory.

A tile reads a line of the cache from each of its positions: more short runs, farther apart, than prefetchers follow.
Where x is not in the second cache, the transforms waited for its lines.

U is one run of memory, but products read it no faster than they multiply by it, and then prefetchers do not run far
ahead of them. Two cores of a Zen 4 read 48 MB in register tiles of 14 x 2 vectors at 19 GB/s, and fetching 8 KiB ahead
into the second cache at 28, which is 0.85 of the FMA peak; into the first one at 19.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from convtune.schedules.filtering_places import place_of
from convtune.schedules.filtering_plan import Plan
from convtune.schedules.statements import Expr, Stmt, fetched, nest, sequence
from convtune.schedules.tiling import LINE, ceil_div

AHEAD_BYTES = 8192


def fetching_next(plan: Plan, read: Callable[[Expr, Sequence[Expr]], Expr], q: Expr, made: Stmt) -> Stmt:
    """`made`, the q-th tile's transform; before it, fetches of the same channels for the next tile of its row of tiles.

    read(n, position): the first of these channels. At the end of a row fetches are in vain, beyond x they do no harm.
    """
    along = max((i for i, axis in enumerate(plan.axes) if axis.tiles > 1), default=None)
    if along is None or not plan.ahead:
        return made
    place, axes = place_of(plan, q), plan.axes
    inputs = [axis.inputs + axis.windows - 1 for axis in axes]
    fresh = [min(axis.m, n) if i == along else n for i, (axis, n) in enumerate(zip(axes, inputs))]
    following = [tile + (i == along) for i, tile in enumerate(place.tiles)]

    def each_part(parts: Sequence[Expr]) -> Stmt:
        start = [a.input(residue, tile, part) for a, residue, tile, part in zip(axes, place.residues, following, parts)]
        start[along] = start[along] + (inputs[along] - fresh[along]) * axes[along].pitch

        def line(index: Sequence[Expr]) -> Stmt:
            return fetched(read(place.n, [s + i * a.pitch for s, i, a in zip(start, index, axes)]))

        return nest(fresh, line)

    return sequence([nest([axis.parts for axis in axes], each_part), made])


def fetching_weights(plan: Plan, u: Any, at: tuple[Expr, Expr, Expr, Expr], rows: Expr) -> list[Stmt]:
    """Fetches into the second cache of what follows a step of a panel of U, which is at pass, point, block, step.

    Where several register tiles of a block read a panel, each fetches its part of the next one.
    """
    from tvm import tirx

    if not plan.weights_ahead:
        return []
    tiles = plan.block_rows // plan.rows
    lines = ceil_div(plan.width, LINE)
    each, whole = ceil_div(lines, tiles), plan.taps * plan.depth
    *panel, step = at
    distance = whole if tiles > 1 else min(whole, ceil_div(AHEAD_BYTES, 4 * plan.width))
    first = rows * each * LINE if tiles > 1 else 0
    return [
        fetched(tirx.BufferLoad(u, [*panel, step + distance, first + line * LINE]), first_cache=False)
        for line in range(each)
    ]
