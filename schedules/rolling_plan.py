"""The sizes of a `rolling_rows` kernel: rows, columns and channels of a chain of a product and two 1-D filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune.schedules.axes import Axis, axes_of
from convtune.schedules.channel_blocks import ChannelBlocks
from convtune.schedules.tiling import LARGEST_BODY, ceil_div, round_up

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

MOST_UNROLLED = 8  # columns of a filter in one turn
MOST_ROWS = 8  # of products that are made at once
LITTLE_WASTE = 1.02  # times as many products are computed as are needed


@dataclass(frozen=True)
class Plan(ChannelBlocks):
    """Sizes of the loops: tiles of `tile` columns x `vectors`, blocks of so many vectors, chunks of blocks, bands.

    The products of `group` rows are made at once, since tiles may cross the ends of these.
    """

    batch: int
    depth: int
    channels: int
    rows: Axis
    columns: Axis
    tile: int
    vectors: int
    lanes: int
    chunks: int
    bands: int
    group: int

    @property
    def chunk_blocks(self) -> int:
        return ceil_div(self.blocks, self.chunks)

    @property
    def last_widths(self) -> tuple[int, ...]:
        """Lanes of each vector of the last block."""
        left = self.last_channels
        return tuple(min(self.lanes, left - at) for at in range(0, left, self.lanes))

    @property
    def slots(self) -> int:
        """Rows of the ring: what an output reads, and a group; groups that begin at a multiple do not wrap around."""
        return round_up(self.rows.span - 1 + self.group, self.group)

    @property
    def ring_bytes(self) -> int:
        return self.chunk_blocks * self.block * self.slots * self.columns.size * 4

    @property
    def weight_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(block, ic, channel in block); (tap, channel); (tap, channel)."""
        channels = self.blocks * self.block
        return (self.blocks, self.depth, self.block), (self.rows.taps, channels), (self.columns.taps, channels)

    def unrolled(self, taps: int) -> int:
        """Columns of a filter in one turn."""
        return max(1, min(MOST_UNROLLED, LARGEST_BODY // taps))


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    names = ("columns", "oc_vectors", "chunks", "bands")
    tile, vectors, chunks, bands = (int(knobs[name]) for name in names)
    down, along = axes_of(spec.stages[1])[1], axes_of(spec.stages[2])[2]
    sizes = (spec.batch, spec.in_channels, spec.out_channels)
    group = 1 if down.stride > down.span else group_of(along.size, down.size, tile)[0]  # else some rows are not read
    return Plan(*sizes, down, along, tile, vectors, target.lanes, chunks, bands, group)


def group_of(width: int, rows: int, tile: int) -> tuple[int, float]:
    """Rows whose products are made at once, so that tiles compute little twice, and how many times as many they are."""
    waste = {count: round_up(count * width, tile) / (count * width) for count in range(1, min(MOST_ROWS, rows) + 1)}
    enough = max(LITTLE_WASTE, min(waste.values()))
    return next((count, times) for count, times in waste.items() if times <= enough)
