"""The register tiles and tasks that a candidate of `depthwise_rows` or `depthwise_squares` makes of a view's axes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from convtune.schedules.axes import View, view_of
from convtune.schedules.past_caches import is_past
from convtune.schedules.tiling import ceil_div

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


MOST_HELD = 5 / 8  # of the registers, for weights: with all rows of a larger kernel unrolled LLVM spills sums
NUMBERS = ("lanes", "rows", "columns", "vectors", "depth_blocks", "row_blocks", "column_blocks")


@dataclass(frozen=True)
class Plan:
    """What a candidate makes of a view.

    rows x columns x vectors: outputs of a register tile, a vector being `lanes` channels. whole: whether the rows of
    the kernel are unrolled. depth_blocks, row_blocks, column_blocks: parts that tasks make of the depth, of the rows,
    and of the tiles of a row. chunk: blocks of channels that are computed before the next tile. split: whether chunks
    are tasks. past: whether outputs are stored past the caches.
    """

    view: View
    channels: int
    lanes: int
    rows: int
    columns: int
    vectors: int
    whole: bool
    depth_blocks: int
    row_blocks: int
    column_blocks: int
    chunk: int
    split: bool
    past: bool = False

    @property
    def width(self) -> int:
        """Channels of a tile."""
        return self.lanes * self.vectors

    @property
    def blocks(self) -> int:
        """Tiles side by side in the channels; the last one begins early enough to end with them."""
        return ceil_div(self.channels, self.width)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the packed weight: (tap, channel), where tiles divide the channels with those of a tile side by side.

        With all taps of a tile far apart, and many channels a power of two apart, they would displace each other in the
        first cache.
        """
        taps = prod(axis.taps for axis in self.view.axes)
        return (taps, self.channels) if self.channels % self.width else (self.blocks, taps, self.width)

    @property
    def chunks(self) -> int:
        return ceil_div(self.blocks, self.chunk)

    @property
    def tiles(self) -> int:
        """Of a row, the last one ending with it."""
        return ceil_div(self.view.columns.out, self.columns)

    def start(self, tile: int) -> int:
        return min(tile * self.columns, self.view.columns.out - self.columns)

    def inside(self, tile: int) -> bool:
        """Whether all that a tile's columns read lies in the input."""
        axis, start = self.view.columns, self.start(tile)
        last = start + self.columns - 1
        return len(axis.valid(start)) == len(axis.valid(last)) == axis.taps

    @property
    def inner(self) -> range:
        """The tiles that share one code, as they read no border; the others have a code each."""
        found = [tile for tile in range(self.tiles) if self.inside(tile)]
        return range(found[0], found[-1] + 1) if found else range(self.tiles, self.tiles)

    def reads(self, tile: int) -> dict[int, list[tuple[int, int]]]:
        """For each input column of a tile, from that of its first output's tap 0: (column, tap) that it serves."""
        axis, start = self.view.columns, self.start(tile)
        found: dict[int, list[tuple[int, int]]] = {}
        for column in range(self.columns):
            for tap in axis.valid(start + column):
                found.setdefault(column * axis.stride + tap * axis.dilation, []).append((column, tap))
        return dict(sorted(found.items()))

    def row_reads(self) -> dict[int, list[tuple[int, int]]]:
        """For each input row of a tile the (row, tap) pairs that it serves; of all rows where taps are unrolled."""
        axis = self.view.rows
        found: dict[int, list[tuple[int, int]]] = {}
        for row in range(self.rows):
            for tap in range(axis.taps if self.whole else 1):
                found.setdefault(row * axis.stride + tap * axis.dilation, []).append((row, tap))
        return dict(sorted(found.items()))


def has_one_filter_each(spec: ConvSpec) -> bool:
    """Whether it is depthwise with as many output as input channels."""
    return spec.variant == "depthwise" and spec.in_channels == spec.out_channels


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    numbers = {name: int(knobs[name]) for name in NUMBERS}
    blocks = ceil_div(spec.out_channels, numbers["lanes"] * numbers["vectors"])
    view = view_of(spec)
    return Plan(
        view=view,
        channels=spec.out_channels,
        **numbers,
        whole=view.rows.taps * view.columns.taps <= target.vector_registers * MOST_HELD,
        chunk=min(blocks, int(knobs["chunk"])),
        split=knobs["oc_order"] == "parallel",
        past=is_past(knobs["oc_order"]),
    )
