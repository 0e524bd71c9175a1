"""The rows and register tiles that a candidate of `strided_rows` makes: sizes only, no TVM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune.schedules.axes import Axis, axes_of
from convtune.schedules.pointwise_planes_plan import Plan as Products
from convtune.schedules.tiling import ceil_div, round_up

from convtune.spec import count

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


@dataclass(frozen=True)
class Plan:
    """axes: depth, rows, columns. rows: of outputs of a task. products: those of one row of outputs."""

    batch: int
    channels: int
    axes: tuple[Axis, Axis, Axis]
    rows: int
    products: Products

    @property
    def tasks(self) -> tuple[int, int, int]:
        """(image, depth, block of rows)."""
        depth, rows, _ = self.axes
        return self.batch, depth.out, ceil_div(rows.out, self.rows)

    @property
    def input_rows(self) -> int:
        """Of a channel and a tap of depth, that a task reads."""
        rows = self.axes[1]
        return (self.rows - 1) * rows.stride + rows.span

    @property
    def columns(self) -> int:
        """Of a residue, that are read."""
        return ceil_div(self.axes[2].reach, self.axes[2].stride)

    @property
    def pitch(self) -> int:
        """Columns of a residue, in whole vectors."""
        return round_up(self.columns, self.products.lanes)

    @property
    def line(self) -> int:
        """Columns of a row of inputs, of all residues."""
        return self.pitch * self.axes[2].stride

    @property
    def beyond(self) -> int:
        """Inputs after a row that its last vectors would read, where rows are read from x."""
        columns = self.axes[2]
        return max(0, self.columns * columns.stride - columns.size)

    @property
    def inside(self) -> bool:
        """Whether columns read no zeros, so that vectors are taken from x as it lies."""
        columns = self.axes[2]
        return columns.before == 0 and columns.reach <= columns.size

    @property
    def pad_shape(self) -> tuple[int, int, int, int, int]:
        """(ic, kd, row of inputs, residue, column // stride)."""
        return self.channels, self.axes[0].taps, self.input_rows, self.axes[2].stride, self.pitch

    @property
    def pad_bytes(self) -> int:
        return 4 * count(self.pad_shape)


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    axes = axes_of(spec)
    channels, vectors = int(knobs["channels"]), int(knobs["vectors"])
    depth, width = spec.in_channels * count(spec.kernel), axes[2].out
    products = Products(width, depth, spec.out_channels, channels, vectors, target.lanes, width, parts=1, copied=False)
    return Plan(spec.batch, spec.in_channels, axes, int(knobs["rows"]), products)
