"""Which taps of which columns read inputs, and the register tiles and tasks that a candidate of `inside_taps` makes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, product
from math import prod
from typing import TYPE_CHECKING

from convtune.schedules.axes import Axis, View, view_of
from convtune.schedules.channel_blocks import ChannelBlocks
from convtune.schedules.tiling import ceil_div

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


@dataclass(frozen=True)
class Taps:
    """Taps side by side of a row of the kernel that the same columns of a tile use."""

    first: int
    count: int
    columns: tuple[int, int]

    @property
    def width(self) -> int:
        return self.columns[1] - self.columns[0]


@dataclass(frozen=True)
class Tiles:
    """Tiles side by side of a row, `count` of them from `first` on, of as many columns each, that use the same taps."""

    first: int
    count: int
    columns: int
    taps: tuple[Taps, ...]


class RowTiles:
    """Of a plan whose tasks are rows of outputs, `row_block` each, in tiles of so many columns."""

    view: View
    columns: int
    row_block: int

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Images, depth and rows: all rows of outputs."""
        return self.view.batch, self.view.depth.out, self.view.rows.out

    @property
    def rows(self) -> int:
        return prod(self.row_shape)

    @property
    def row_tasks(self) -> int:
        return ceil_div(self.rows, self.row_block)

    @property
    def tiles(self) -> tuple[Tiles, ...]:
        """Of a row."""
        return tiles_of(self.view.columns, self.columns)


@dataclass(frozen=True)
class Plan(RowTiles, ChannelBlocks):
    """Sizes: rows of outputs in tasks of `row_block`, in register tiles of columns x vectors.

    depth: input channels, of which a pass over a task's rows takes `ic_block`. sharing: what consecutive tasks share.
    """

    view: View
    depth: int
    channels: int
    columns: int
    vectors: int
    lanes: int
    row_block: int
    ic_block: int
    sharing: str

    @property
    def parts(self) -> int:
        """Of the reduction."""
        return self.depth // self.ic_block

    @property
    def taps(self) -> tuple[int, int, int]:
        """Of the kernel, as the view has them."""
        depth, rows, columns = (axis.taps for axis in self.view.axes)
        return depth, rows, columns

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(block, part, kd, kh, kw, ic of a part, channel in block)."""
        return (self.blocks, self.parts, *self.taps, self.ic_block, self.block)


@lru_cache(maxsize=1024)
def tiles_of(axis: Axis, columns: int) -> tuple[Tiles, ...]:
    """Tiles of so many columns, the last one of as many as are left, by the taps that they use."""
    found: list[Tiles] = []
    for first in range(0, axis.out, columns):
        width = min(columns, axis.out - first)
        taps = _taps_of(axis, first, width)
        if found and (found[-1].columns, found[-1].taps) == (width, taps):
            before = found.pop()
            found.append(Tiles(before.first, before.count + 1, width, taps))
        else:
            found.append(Tiles(first, 1, width, taps))
    return tuple(found)


def _taps_of(axis: Axis, first: int, width: int) -> tuple[Taps, ...]:
    """Those that any of the columns uses; neighbours with the same columns together."""
    valid = [axis.valid(first + column) for column in range(width)]
    using = [[column for column in range(width) if tap in valid[column]] for tap in range(axis.taps)]
    found: list[Taps] = []
    for columns, taps in groupby(range(axis.taps), key=lambda tap: using[tap]):
        run = list(taps)
        if columns:
            found.append(Taps(run[0], len(run), (columns[0], columns[-1] + 1)))
    return tuple(found)


@lru_cache(maxsize=256)
def input_rows(view: View, row_block: int) -> int:
    """Rows of inputs that tasks of so many rows of outputs read, over all tasks."""
    depth, rows = view.depth, view.rows
    read: dict[tuple[int, int], set[tuple[int, int]]] = {}  # by the place of the output's row in an image
    for d, h in product(range(depth.out), range(rows.out)):
        planes = [depth.first(d) + tap * depth.dilation for tap in depth.valid(d)]
        read[d, h] = {(p, rows.first(h) + tap * rows.dilation) for p in planes for tap in rows.valid(h)}
    outs = [(n, *place) for n in range(view.batch) for place in read]
    tasks = [outs[first : first + row_block] for first in range(0, len(outs), row_block)]
    return sum(len({(n, *row) for n, d, h in task for row in read[d, h]}) for task in tasks)


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    return Plan(
        view=view_of(spec),
        depth=spec.in_channels,
        channels=spec.out_channels,
        columns=int(knobs["columns"]),
        vectors=int(knobs["oc_vectors"]),
        lanes=target.lanes,
        row_block=int(knobs["row_block"]),
        ic_block=int(knobs["ic_block"]),
        sharing=str(knobs["sharing"]),
    )
