"""The blocks of tiles that a candidate of `grouped_shifts` makes, and how a channel's rows lie in one line: no TVM."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune.schedules import axes
from convtune.schedules.filtered_planes_plan import edges_of
from convtune.schedules.filtering_axis import TiledAxis, tiled_axes
from convtune.schedules.filtering_points import Filtering
from convtune.schedules.tiling import FEWEST_LANES, ceil_div, round_up, spread

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


@dataclass(frozen=True)
class Plan:
    """Sizes: rows are filtered, the taps of columns are summed. outputs x vectors: a register tile, of the channels and
    positions of a group. block: tiles of rows of a task; span: groups of a task.

    A line is what a task's tiles have of a channel and point, one tile after the other, with zeros around them: output
    `position` of a line reads its inputs `position + tap * dilation`. Between two tiles there are zeros for either.
    """

    rows: TiledAxis
    columns: axes.Axis
    batch: int
    groups: int
    depth: int
    run: int
    lanes: int
    outputs: int
    vectors: int
    block: int
    span: int

    @property
    def filter(self) -> Filtering:
        assert isinstance(self.rows.filter, Filtering)
        return self.rows.filter

    @property
    def alpha(self) -> int:
        return self.rows.alpha

    @property
    def passes(self) -> int:
        """Blocks of output channels of a group."""
        return self.run // self.outputs

    @property
    def blocks(self) -> int:
        """Of tiles, of which the last one begins so early that it ends with the last tile."""
        return ceil_div(self.rows.tiles, self.block)

    @property
    def tasks(self) -> int:
        return self.batch * self.spans * self.blocks

    @property
    def spans(self) -> int:
        """Tasks side by side for all groups."""
        return self.groups // self.span

    @property
    def before(self) -> int:
        return self.columns.before

    @property
    def after(self) -> int:
        """Zeros that the last outputs of a row read."""
        return max(0, self.columns.reach - self.before - self.columns.size)

    @property
    def pitch(self) -> int:
        """Positions from tile to tile."""
        return max(self.columns.size + max(self.before, self.after), self.columns.out)

    @property
    def lead(self) -> int:
        """Elements of a line before the first tile's column 0: whole vectors, whose last ones are zeros."""
        return round_up(self.before, self.lanes)

    @property
    def positions(self) -> int:
        """Outputs of a line, with those between tiles that are no one's."""
        return (self.block - 1) * self.pitch + self.columns.out

    @property
    def line(self) -> int:
        """Elements from line to line of V: whole vectors."""
        return round_up(self.lead + (self.block - 1) * self.pitch + self.columns.size + self.after, self.lanes)

    @property
    def out_line(self) -> int:
        """Elements from line to line of M: whole vectors."""
        return round_up(self.positions, self.lanes)

    @property
    def pieces(self) -> int:
        """Register tiles of a line, of which the last one begins so early that it ends with the line."""
        return ceil_div(self.positions, self.vectors * self.lanes)

    def vectors_of(self, columns: int) -> list[tuple[int, int]]:
        return row_vectors(columns, self.lanes)

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """Where the zeros of a line are, and how many, but for those between tiles."""
        end = self.lead + (self.block - 1) * self.pitch + self.columns.size
        return [(start, size) for start, size in ((self.lead - self.before, self.before), (end, self.after)) if size]

    @property
    def edges(self) -> tuple[int, ...]:
        return edges_of(self.rows)

    @property
    def v_shape(self) -> tuple[int, int]:
        """(point, input channel and place in its line); points lie in different sets of the first cache."""
        return self.alpha, spread(self.depth * self.line)

    @property
    def m_shape(self) -> tuple[int, int]:
        """(point, output channel and position)"""
        return self.alpha, spread(self.run * self.out_line)

    @property
    def u_shape(self) -> tuple[int, ...]:
        """(group, point, block of output channels, input channel, tap of the columns, channel of the block)"""
        return self.groups, self.alpha, self.passes, self.depth, self.columns.taps, self.outputs

    @property
    def task_bytes(self) -> int:
        """Of V and M."""
        return 4 * self.alpha * (self.v_shape[1] + self.m_shape[1])


def row_vectors(columns: int, lanes: int) -> list[tuple[int, int]]:
    """Where in a row begin the vectors that are made at once, and their lanes: whole ones, and a last one of no more
    lanes than it needs, which ends with the row."""
    most, found = 1 << (min(lanes, columns).bit_length() - 1), list[tuple[int, int]]()
    for start in range(0, columns, most):
        needed = 1 << (columns - start - 1).bit_length()
        width = min(most, max(FEWEST_LANES, needed))
        found.append((min(start, columns - width), width))
    return found


def axis_of(spec: ConvSpec, m: int) -> TiledAxis:
    """The rows, in tiles of m outputs."""
    return tiled_axes(spec, (1, m, 1))[1]


@functools.lru_cache(maxsize=1 << 12)
def _plan(spec: ConvSpec, lanes: int, m: int, outputs: int, vectors: int, blocks: int, span: int) -> Plan:
    channels = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    rows = axis_of(spec, m)
    block = ceil_div(rows.tiles, blocks)
    return Plan(rows, axes.axes_of(spec)[2], spec.batch, spec.groups, *channels, lanes, outputs, vectors, block, span)


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    """The plan of a candidate."""
    names = "m_tile", "channels", "vectors", "row_blocks", "units"
    return _plan(spec, target.lanes, *(int(knobs[name]) for name in names))
