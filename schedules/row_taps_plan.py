"""The register tiles of `row_taps`: columns x whole vectors of channels, and vectors that several columns share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune.schedules.axes import View, view_of
from convtune.schedules.inside_taps_plan import RowTiles
from convtune.schedules.pointwise_shared import SharedVectors, share_of

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


@dataclass(frozen=True)
class Plan(RowTiles, SharedVectors):
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
