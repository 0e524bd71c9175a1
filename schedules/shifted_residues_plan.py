"""The lines that a candidate of `shifted_residues` has of x, and its tasks: sizes only, no TVM."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune.schedules.axes import Axis, axes_of
from convtune.schedules.tiling import ceil_div, round_up

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


@dataclass(frozen=True)
class Plan:
    """Sizes: a line has rows and columns of x of a residue each, modulo the strides, one row after the other.

    outputs x vectors: a register tile, of the channels and positions of a group. block: rows of outputs of a task.
    """

    rows: Axis
    columns: Axis
    batch: int
    groups: int
    depth: int
    run: int
    lanes: int
    outputs: int
    vectors: int
    block: int

    @property
    def passes(self) -> int:
        """Blocks of output channels of a group."""
        return self.run // self.outputs

    @property
    def blocks(self) -> int:
        """Of rows, of which the last one begins so early that it ends with the last row."""
        return ceil_div(self.rows.out, self.block)

    @property
    def tasks(self) -> int:
        return self.batch * self.groups * self.blocks

    @property
    def residues(self) -> list[tuple[int, int]]:
        """Of rows and columns that taps meet: each has a line of a channel."""
        return [(row, column) for row in _residues(self.rows) for column in _residues(self.columns)]

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Of each tap, rows outermost, the number of its line and how many positions further it reads it."""
        found = []
        for kh in range(self.rows.taps):
            for kw in range(self.columns.taps):
                (down, row), (along, column) = _met(self.rows, kh), _met(self.columns, kw)
                found.append((self.residues.index((row, column)), down * self.pitch + along))
        return found

    @property
    def pitch(self) -> int:
        """Positions from row to row of a line: those that outputs read."""
        return self.columns.out + _met(self.columns, self.columns.taps - 1)[0]

    @property
    def reached(self) -> int:
        """Rows of a line."""
        return self.block + _met(self.rows, self.rows.taps - 1)[0]

    @property
    def line(self) -> int:
        """Elements from line to line: whole vectors."""
        return round_up(self.reached * self.pitch, self.lanes)

    @property
    def positions(self) -> int:
        """Outputs of a line, with those between rows that are no one's."""
        return (self.block - 1) * self.pitch + self.columns.out

    @property
    def out_line(self) -> int:
        """Elements from line to line of sums: whole vectors."""
        return round_up(self.positions, self.lanes)

    @property
    def pieces(self) -> int:
        """Register tiles of a line, of which the last one begins so early that it ends with the line."""
        return ceil_div(self.positions, self.vectors * self.lanes)

    def inside(self, residue: int) -> range:
        """The positions of a row of a line that lie in x, of a residue of columns."""
        axis = self.columns
        first = max(0, ceil_div(axis.before - residue, axis.stride))
        return range(first, max(first, min(self.pitch, (axis.size - 1 + axis.before - residue) // axis.stride + 1)))

    @property
    def held_bytes(self) -> int:
        """Of the lines and sums of a task."""
        return 4 * (self.depth * len(self.residues) * self.line + self.outputs * self.out_line)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(group, block of output channels, input channel, tap, channel of the block)"""
        return self.groups, self.passes, self.depth, self.rows.taps * self.columns.taps, self.outputs


def _met(axis: Axis, tap: int) -> tuple[int, int]:
    """How many positions of its line further than the output a tap reads, and the residue of that line."""
    return divmod(tap * axis.dilation, axis.stride)


def _residues(axis: Axis) -> list[int]:
    return sorted({_met(axis, tap)[1] for tap in range(axis.taps)})


@functools.lru_cache(maxsize=1 << 12)
def _plan(spec: ConvSpec, lanes: int, outputs: int, vectors: int, blocks: int) -> Plan:
    _, rows, columns = axes_of(spec)
    channels = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    block = ceil_div(rows.out, blocks)
    return Plan(rows, columns, spec.batch, spec.groups, *channels, lanes, outputs, vectors, block)


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    """The plan of a candidate."""
    return _plan(spec, target.lanes, *(int(knobs[name]) for name in ("channels", "vectors", "row_blocks")))
