"""What a block of output needs of each stage of a composite variant before it: which positions, in which tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from convtune.schedules.row_tiling import RowTile
from convtune.schedules.tiling import Tile, ceil_div, round_up

from convtune import variants
from convtune.expression import cube
from convtune.spec import LAYOUTS
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import Target

Dims = tuple[int, ...]
AnyTile = TypeVar("AnyTile", Tile, RowTile)


@dataclass(frozen=True)
class Region:
    """The positions of an array that each block of output needs: block * step + shift, and `size` from there.

    All have three dimensions. `valid` is the array's own size: positions outside of it are zero.
    """

    step: Dims
    shift: Dims
    size: Dims
    valid: Dims
    blocks: Dims

    def position(self, block: Sequence[Any], local: Sequence[Any]) -> list[Any]:
        """Where in the array a position of a block's part is."""
        return [b * step + shift + p for b, step, shift, p in zip(block, self.step, self.shift, local)]

    def conditions(self, position: Sequence[Any]) -> list[Any]:
        """What must hold for a position to be inside of the array; only what can fail."""
        return [condition for axis, place in enumerate(position) for condition in self.bounds(axis, place)]

    def bounds(self, axis: int, place: Any) -> list[Any]:
        """The conditions for one dimension."""
        last = (self.blocks[axis] - 1) * self.step[axis] + self.shift[axis] + self.size[axis] - 1
        found = [place >= 0] if self.shift[axis] < 0 else []
        return found + ([place < self.valid[axis]] if last >= self.valid[axis] else [])

    @property
    def inside(self) -> bool:
        return not self.conditions((0, 0, 0))

    @property
    def positions(self) -> int:
        """How many positions a block needs."""
        return self.size[0] * self.size[1] * self.size[2]


@dataclass(frozen=True)
class Stage(Generic[AnyTile]):
    """One stage as a block sees it."""

    spec: ConvSpec  # with the block's part of the input for its input, zeros included, and channels last
    tile: AnyTile
    source: Region  # of the stage's input
    out: Dims  # what the block computes, rows and columns rounded up to whole tiles

    @property
    def lanewise(self) -> bool:
        """Whether an output channel reads its own input channel alone."""
        return self.spec.variant == "depthwise"


def is_inner(stage: Stage[Any], knobs: Knobs) -> bool:
    """Whether a stage's loop over channel blocks is its innermost: a depthwise one, which has no use for it, never."""
    return knobs.get("oc_order") == "inner" and not stage.lanewise


def ordered(stage: Stage[Any], knobs: Knobs, channels: Any, positions: Sequence[Any]) -> list[Any]:
    """The loops of a stage's tiles: the weights of a channel block stay in the first cache, or a tile's inputs do."""
    return [*positions, channels] if is_inner(stage, knobs) else [channels, *positions]


def is_chain(spec: ConvSpec, target: Target) -> bool:
    """Whether the spec is a composite of stages that these spaces have tiles for."""
    kinds = {stage.variant for stage in spec.stages}
    composite = isinstance(variants.get(spec.variant), variants.Composite)
    return isinstance(target, CpuTarget) and composite and kinds <= {"conv", "pointwise", "dilated", "depthwise"}


def plan(spec: ConvSpec, block: Dims, tile_of: Callable[[ConvSpec, Dims, bool], AnyTile]) -> tuple[Stage[AnyTile], ...]:
    """The stages of a composite spec, for blocks of output of that size, rounded up to whole tiles.

    tile_of: the tile of a stage for what a block needs of its result, and whether it is the last one, whose columns
        are those of the whole output.
    """
    size = cube(spec.out_size)
    tile = tile_of(spec.stages[-1], (*block[:2], size[2]), True)
    out: Dims = _whole_tiles(block, tile)
    step, shift = out, (0, 0, 0)
    blocks = tuple(ceil_div(whole, part) for whole, part in zip(size, out))
    found: list[Stage[AnyTile]] = []
    for stage in reversed(spec.stages):
        if found:
            tile = tile_of(stage, out, False)
            out = _whole_tiles(out, tile)
        stride, span, before = cube(stage.stride), cube(stage.span), cube([pad[0] for pad in stage.padding], 0)
        reach = tuple((o - 1) * s + n for o, s, n in zip(out, stride, span))
        step = tuple(a * s for a, s in zip(step, stride))
        shift = tuple(a * s - b for a, s, b in zip(shift, stride, before))
        source = Region(step, shift, reach, cube(stage.in_size), blocks)
        found.insert(0, Stage(_of_block(stage, reach), tile, source, out))
        out = reach
    return tuple(found)


@lru_cache(maxsize=1 << 10)  # of a spec's thousands of plans, few differ in what a stage reads
def _of_block(stage: ConvSpec, reach: Dims) -> ConvSpec:
    """The stage on so much of its input, zeros included, channels last."""
    size = reach[3 - stage.rank :]
    return stage.replace(in_size=size, padding=0, layout=LAYOUTS[stage.rank][1], bias=False, residual=False, batch=1)


def _whole_tiles(size: Dims, tile: Tile | RowTile) -> Dims:
    return (size[0], round_up(size[1], tile.rows), round_up(size[2], tile.columns))
