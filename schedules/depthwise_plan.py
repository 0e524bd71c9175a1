"""A depthwise convolution as three axes of outputs, and the register tiles and tasks that a candidate makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.tiling import ceil_div

from convtune.expression import cube

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


MOST_HELD = 5 / 8  # of the registers, for weights: with all rows of a larger kernel unrolled LLVM spills sums
NUMBERS = ("lanes", "rows", "columns", "vectors", "depth_blocks", "row_blocks", "column_blocks")


@dataclass(frozen=True)
class Axis:
    """One dimension: output o reads input o * stride - before + tap * dilation where that is in [0, size)."""

    size: int
    out: int
    taps: int
    stride: int
    dilation: int
    before: int

    @property
    def span(self) -> int:
        """Inputs from an output's first tap to its last."""
        return (self.taps - 1) * self.dilation + 1

    @property
    def reach(self) -> int:
        """Inputs from the first output's first tap to the last one's last, with the zeros around."""
        return (self.out - 1) * self.stride + self.span

    @property
    def read(self) -> int:
        """Inputs from the first one to the last of these, without zeros."""
        return max(0, min(self.size, self.reach - self.before))

    @property
    def trivial(self) -> bool:
        """Whether an output reads the input at its own place only."""
        return (self.taps, self.stride, self.before) == (1, 1, 0) and self.out == self.size

    def first(self, out: Any) -> Any:
        """The input position of an output's tap 0."""
        return out * self.stride - self.before

    def valid(self, out: int) -> tuple[int, ...]:
        """The taps of an output that read inputs."""
        return tuple(t for t in range(self.taps) if 0 <= self.first(out) + t * self.dilation < self.size)

    @property
    def all_valid(self) -> int:
        """Taps that read inputs, over all outputs."""
        return _all_valid(self)


@lru_cache(maxsize=256)
def _all_valid(axis: Axis) -> int:
    return sum(len(axis.valid(out)) for out in range(axis.out))


@dataclass(frozen=True)
class View:
    """The convolution with as few axes as it needs: images, depth, rows, columns.

    Depth that no tap spans is part of the images; of a kernel that spans depth alone, depth is the rows and a plane's
    rows and columns are the columns.
    """

    batch: int
    depth: Axis
    rows: Axis
    columns: Axis

    @property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        return self.depth, self.rows, self.columns


@lru_cache(maxsize=256)
def axes_of(spec: ConvSpec) -> tuple[Axis, Axis, Axis]:
    """Depth, rows and columns as the spec has them."""
    sizes, outs, taps, strides, dilations = map(
        cube, (spec.in_size, spec.out_size, spec.kernel, spec.stride, spec.dilation)
    )
    befores = cube([before for before, _ in spec.padding], 0)
    depth, rows, columns = (Axis(*of_axis) for of_axis in zip(sizes, outs, taps, strides, dilations, befores))
    return depth, rows, columns


@lru_cache(maxsize=256)
def view_of(spec: ConvSpec) -> View:
    depth, rows, columns = axes_of(spec)
    none = Axis(1, 1, 1, 1, 1, 0)
    if rows.trivial and columns.trivial:
        plane = rows.size * columns.size
        return View(spec.batch, none, depth, Axis(plane, plane, 1, 1, 1, 0))
    if depth.trivial:
        return View(spec.batch * depth.size, none, rows, columns)
    return View(spec.batch, depth, rows, columns)


def place(spec: ConvSpec, n: Any, position: Sequence[Any], channel: Any, sizes: Sequence[int]) -> list[Any]:
    """Where an element of `view_of(spec)` is in an array with these spatial sizes and the channels last."""
    depth, rows, columns = axes_of(spec)
    d, h, w = position
    if rows.trivial and columns.trivial:
        width = cube(sizes)[2]
        d, h, w = h, w // width, w % width
    elif depth.trivial and depth.size > 1:
        n, d = n // depth.size, n % depth.size
    return [n, *(d, h, w)[3 - spec.rank :], channel]


@dataclass(frozen=True)
class Plan:
    """What a candidate makes of a view.

    rows x columns x vectors: outputs of a register tile, a vector being `lanes` channels. whole: whether the rows of
    the kernel are unrolled. depth_blocks, row_blocks, column_blocks: parts that tasks make of the depth, of the rows,
    and of the tiles of a row. chunk: blocks of channels that are computed before the next tile. split: whether chunks
    are tasks.
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
    )
