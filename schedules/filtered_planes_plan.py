"""The tiles, blocks and tasks that a candidate of `filtered_planes` makes: sizes only, no TVM."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from convtune.schedules.filtering_axis import TiledAxis, tiled_axes
from convtune.schedules.filtering_plan import TILES
from convtune.schedules.filtering_points import Filtering
from convtune.schedules.tiling import ceil_div, spread

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


@dataclass(frozen=True)
class Plan:
    """Sizes: x is (batch, depth, front, axis.size, inner), y the same with run channels and axis.out.

    outputs x vectors: a register tile. block: vectors of inner positions of a task.
    """

    axis: TiledAxis
    batch: int
    depth: int
    run: int
    front: int
    inner: int
    lanes: int
    outputs: int
    vectors: int
    block: int

    @property
    def filter(self) -> Filtering:
        assert isinstance(self.axis.filter, Filtering)
        return self.axis.filter

    @property
    def alpha(self) -> int:
        return self.axis.alpha

    @property
    def blocks(self) -> int:
        """Of output channels."""
        return ceil_div(self.run, self.outputs)

    @property
    def width(self) -> int:
        """Positions of a task."""
        return self.block * self.lanes

    @property
    def tiles(self) -> int:
        """Of a block of positions, of which the last one begins so early that it ends with the block."""
        return ceil_div(self.block, self.vectors)

    @property
    def position_blocks(self) -> int:
        return ceil_div(self.inner, self.width)

    @property
    def tasks(self) -> int:
        return self.batch * self.front * self.axis.tiles * self.position_blocks

    @property
    def edges(self) -> tuple[int, ...]:
        return edges_of(self.axis)

    @property
    def held_shape(self) -> tuple[int, int]:
        """(one more than points, channel and position) of V and M: M of a point lies where V of the one before was.

        Points lie in different sets of the first cache.
        """
        return self.alpha + 1, spread(max(self.depth, self.blocks * self.outputs) * self.width)

    @property
    def u_shape(self) -> tuple[int, int, int, int]:
        """(point, block, input channel, channel of the block)"""
        return self.alpha, self.blocks, self.depth, self.outputs

    @property
    def task_bytes(self) -> int:
        """Of V and M."""
        return 4 * prod(self.held_shape)


def edges_of(axis: TiledAxis) -> tuple[int, ...]:
    """Tiles that read padding or have outputs that do not exist."""

    def inside(tile: int) -> bool:
        first = int(axis.input(0, tile, 0))
        return first >= 0 and first + axis.alpha <= axis.size and (tile + 1) * axis.m <= axis.out

    return tuple(tile for tile in range(axis.tiles) if not inside(tile))


def worthwhile_tiles(axis_of: Callable[[int], TiledAxis]) -> tuple[int, ...]:
    """Sizes of tiles: each needs fewer products than smaller ones and direct sums do, in one part.

    axis_of: the dimension in tiles of so many outputs.
    """
    found, least = list[int](), axis_of(1).products
    for m in TILES:
        axis = axis_of(m)
        usable = axis.parts == 1 and axis.alpha <= axis.most_alpha and not axis.exchanged and axis.unmet == (0, 0)
        if usable and axis.products < least:
            found, least = [*found, m], axis.products
    return tuple(found)


def filtered_dimension(spec: ConvSpec) -> int | None:
    """The only dimension with a kernel, where it is not the innermost one; all others are read as they are."""
    found = [i for i, taps in enumerate(spec.kernel) if taps > 1]
    if len(found) != 1 or found[0] == spec.rank - 1:
        return None
    plain = all(
        spec.stride[i] == 1 and spec.in_size[i] == spec.out_size[i] for i in range(spec.rank) if i != found[0]
    ) and not any(any(pads) for i, pads in enumerate(spec.padding) if i != found[0])
    return found[0] if plain and spec.stride[found[0]] == 1 and spec.dilation[found[0]] == 1 else None


def axis_of(spec: ConvSpec, m: int) -> TiledAxis:
    """The filtered dimension, in tiles of m outputs."""
    dimension = filtered_dimension(spec)
    assert dimension is not None
    place = dimension + 3 - spec.rank
    sizes = tuple(m if i == place else 1 for i in range(3))
    return tiled_axes(spec, sizes)[place]


@functools.lru_cache(maxsize=1 << 12)
def _plan(spec: ConvSpec, lanes: int, m: int, outputs: int, vectors: int, block: int) -> Plan:
    dimension = filtered_dimension(spec)
    assert dimension is not None
    front, inner = prod(spec.in_size[:dimension]), prod(spec.in_size[dimension + 1 :])
    sizes = spec.batch, spec.in_channels, spec.out_channels, front, inner
    return Plan(axis_of(spec, m), *sizes, lanes, outputs, vectors, block)


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    """The plan of a candidate."""
    return _plan(spec, target.lanes, *(int(knobs[name]) for name in ("m_tile", "channels", "vectors", "block")))
