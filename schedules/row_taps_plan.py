"""The register tiles of `row_taps`: columns x whole vectors of channels, and vectors that several columns share."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from convtune.schedules.depthwise_plan import View, view_of
from convtune.schedules.inside_taps_plan import Tiles, tiles_of
from convtune.schedules.pointwise_shared import share_of
from convtune.schedules.tiling import ceil_div

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


@dataclass(frozen=True)
class Plan:
    """columns x vectors: outputs and whole vectors of channels of a register tile. share: columns whose left-over
    channels are one vector. row_block: rows of outputs of a task."""

    view: View
    depth: int
    channels: int
    lanes: int
    share: int
    columns: int
    vectors: int
    row_block: int

    @property
    def whole(self) -> int:
        """Whole vectors of channels."""
        return self.channels // self.lanes

    @property
    def left(self) -> int:
        """Channels beside them."""
        return self.channels % self.lanes

    @property
    def width(self) -> int:
        """Lanes of a column in a shared vector."""
        return self.lanes // self.share

    @property
    def blocks(self) -> list[range]:
        """The whole vectors that a register tile has at a time."""
        starts = range(0, max(self.whole, 1), self.vectors)
        return [range(start, min(start + self.vectors, self.whole)) for start in starts]

    def ends(self, block: range) -> bool:
        """Whether a block has the left-over channels."""
        return self.left > 0 and block.stop == self.whole

    def sums(self, block: range, columns: int) -> int:
        """Vectors of sums of a tile of so many columns."""
        return columns * len(block) + (ceil_div(columns, self.share) if self.ends(block) else 0)

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

    @property
    def weight_vectors(self) -> int:
        """Of channels, with the one that is not whole."""
        return self.whole + (self.left > 0)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(kd, kh, kw and ic, vector and lane)."""
        depth, rows, columns = (axis.taps for axis in self.view.axes)
        return depth, rows, columns * self.depth, self.weight_vectors * self.lanes


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    left = spec.out_channels % target.lanes
    return Plan(
        view=view_of(spec),
        depth=spec.in_channels,
        channels=spec.out_channels,
        lanes=target.lanes,
        share=share_of(left, target.lanes) if left else 1,
        columns=int(knobs["columns"]),
        vectors=int(knobs["vectors"]),
        row_block=int(knobs["row_block"]),
    )
