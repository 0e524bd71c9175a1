"""Where a tile of minimal filtering is, and the vectors of its channels, as expressions of their numbers."""

from __future__ import annotations

from math import prod
from typing import Any

from convtune.schedules.filtering_plan import Place, Plan
from convtune.schedules.ranges import least, named
from convtune.schedules.statements import Expr, loop, sequence, unflat


def place_of(plan: Plan, q: Expr) -> Place:
    """The q-th tile: images outside, then residues, then tiles of a row.

    Of the last dimension the residues that need all points come first, with all residues of the others.
    """
    depths, rows, columns = (axis.residues for axis in plan.axes)
    first, tiles = plan.axes[2].full, [axis.tiles for axis in plan.axes]
    if first == columns:
        n, *found = unflat(q, [plan.batch, depths, rows, columns, *tiles])
        return Place(n, tuple(found[:3]), tuple(found[3:]))
    from tvm import tirx

    each = depths * rows * prod(tiles)  # of a residue of the columns
    of_image = q % (each * columns)
    early = unflat(of_image, [depths, rows, first, *tiles])
    late = unflat(of_image - each * first, [depths, rows, columns - first, *tiles])
    chosen = [a if a is b else tirx.if_then_else(of_image < each * first, a, b) for a, b in zip(early, late)]
    chosen[2] = tirx.if_then_else(of_image < each * first, early[2], late[2] + first)
    return Place(q // (each * columns), tuple(chosen[:3]), tuple(chosen[3:]))


def of_vector(plan: Plan, vector: Any, body: Any) -> Any:
    """body(first channel, how many) for one of the vectors."""
    whole, rest = divmod(plan.v_channels, plan.lanes)
    if not whole:
        return body(0, rest)
    if not rest:
        return body(vector * plan.lanes, plan.lanes)
    return named(least(vector * plan.lanes, plan.v_channels - plan.lanes), "channel", lambda c: body(c, plan.lanes))


def each_vector(elements: int, lanes: int, body: Any) -> Any:
    """body(first element, how many) for whole vectors of so many elements, the last of which may overlap."""
    whole, rest = divmod(elements, lanes)
    if not whole:
        return body(0, rest)
    parts = [loop(whole, lambda i: body(i * lanes, lanes), name="vector")]
    return sequence([*parts, body(elements - lanes, lanes)] if rest else parts)
