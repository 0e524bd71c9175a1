"""The rows of `filtered_rows`: how they lie in V, and their transform, of channels-last or channels-first inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_axis import TiledAxis
from convtune.schedules.filtering_input import InputTransform
from convtune.schedules.filtering_places import each_vector
from convtune.schedules.filtering_plan import Plan
from convtune.schedules.statements import loop, nest, sequence
from convtune.schedules.tiling import round_up

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


@dataclasses.dataclass(frozen=True)
class Row:
    """Of the transformed inputs: a row of `length` elements for each point, part and plane.

    Channels last, a row holds all channels of its columns; channels first, it lies in one of their planes.
    """

    axis: TiledAxis
    parts: int  # of the taps of the other dimensions
    planes: int
    channels: int  # of a column of a row
    columns: int  # of the output
    inside: int  # columns of x that a row holds
    first: int  # element of the first column of x
    start: int  # element of the first column that an output reads
    end: int  # element after the last one that an output reads
    length: int

    @classmethod
    def of(cls, spec: ConvSpec, plan: Plan) -> Row:
        axis = plan.axes[2]
        planes, channels = (1, spec.in_channels) if spec.channels_last else (spec.in_channels, 1)
        first = round_up(axis.before * channels, plan.lanes)

        def after(columns: int) -> int:
            """Columns of x up to the last one that so many outputs read."""
            return (columns - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1 - axis.before

        needed = after(axis.out)
        inside = max(0, min(axis.size, needed))
        most = max(after(round_up(axis.out, plan.rows)), inside)
        return cls(
            axis=axis,
            parts=plan.axes[0].parts * plan.axes[1].parts,
            planes=planes,
            channels=channels,
            columns=axis.out,
            inside=inside,
            first=first,
            start=first - axis.before * channels,
            end=first + max(needed, 0) * channels,
            length=round_up(first + max(most, 0) * channels, plan.lanes),
        )


def transformed(spec: ConvSpec, plan: Plan, row: Row, v: Any, x: Any, index: Any) -> Any:
    """V of the rows of a tile, with zeros around them. x: (n, plane, depth, height, element of a row)."""
    parts = _zeros(plan, row, v)
    if row.inside:
        parts.append(loop(row.planes, lambda plane: _plane(spec, plan, row, v, x, index, plane), name="plane"))
    return sequence(parts)


def _zeros(plan: Plan, row: Row, v: Any) -> list[Any]:
    """What lies around x in a row, of all points, parts and planes."""
    from tvm import tirx

    def zeros(begin: int, end: int) -> Any:
        def of_row(index: Sequence[Any]) -> Any:
            point, number = index
            store = lambda lane: tirx.BufferStore(  # noqa: E731
                v, tirx.const(0.0, "float32"), [point, number * row.length + begin + lane]
            )
            return loop(end - begin, store, "VECTORIZED" if end - begin <= plan.lanes else "SERIAL", "lane")

        return nest([plan.points, row.parts * row.planes], of_row)

    last = row.first + row.inside * row.channels
    return [zeros(begin, end) for begin, end in ((row.start, row.first), (last, row.end)) if end > begin]


def _plane(spec: ConvSpec, plan: Plan, row: Row, v: Any, x: Any, index: Any, plane: Any) -> Any:
    """The transform of the tile's rows of a plane: that of a column whose channels are all elements of a row."""
    from tvm import tirx

    elements, length = row.inside * row.channels, row.planes * row.length
    column = dataclasses.replace(row.axis, taps=1, stride=1, dilation=1, before=0, size=1, out=1)
    flat_plan = dataclasses.replace(plan, axes=(*plan.axes[:2], column), channels=length, depth=length, rows=1, block=1)
    first = plane * row.length + row.first
    transform = InputTransform(
        spec,
        flat_plan,
        lambda n, element, lane, position: tirx.BufferLoad(x, [n, plane, *position[:2], element + lane]),
        lambda point, _row, element: (v, (point, first + element)),
    )
    return each_vector(elements, plan.lanes, lambda element, width: transform.tile(index, 0, element, width))
