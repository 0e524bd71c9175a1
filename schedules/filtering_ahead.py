"""Fetches what minimal filtering's next tile reads of x, while one is transformed.

A tile reads a line of the cache from each of its positions: more short runs, farther apart, than prefetchers follow.
Where x is not in the second cache, the transforms waited for its lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convtune.schedules.filtering_plan import Plan, place_of
from convtune.schedules.statements import Expr, Stmt, fetched, nest, sequence


def fetching_next(plan: Plan, read: Callable[[Expr, Sequence[Expr]], Expr], q: Expr, made: Stmt) -> Stmt:
    """`made`, the q-th tile's transform; before it, fetches of the same channels for the next tile of its row of tiles.

    read(n, position): the first of these channels. At the end of a row fetches are in vain, beyond x they do no harm.
    """
    along = max((i for i, axis in enumerate(plan.axes) if axis.tiles > 1), default=None)
    if along is None or not plan.ahead:
        return made
    place, axes = place_of(plan, q), plan.axes
    fresh = [min(axis.m, axis.inputs) if i == along else axis.inputs for i, axis in enumerate(axes)]
    following = [tile + (i == along) for i, tile in enumerate(place.tiles)]

    def each_part(parts: Sequence[Expr]) -> Stmt:
        start = [a.input(residue, tile, part) for a, residue, tile, part in zip(axes, place.residues, following, parts)]
        start[along] = start[along] + (axes[along].inputs - fresh[along]) * axes[along].pitch

        def line(index: Sequence[Expr]) -> Stmt:
            return fetched(read(place.n, [s + i * a.pitch for s, i, a in zip(start, index, axes)]))

        return nest(fresh, line)

    return sequence([nest([axis.parts for axis in axes], each_part), made])
