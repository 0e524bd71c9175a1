"""What a block of output needs of each stage of a composite variant before it: which positions, in which tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convtune.schedules.tiling import Tile, ceil_div, round_up

from convtune.expression import cube
from convtune.spec import LAYOUTS

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import Target

Dims = tuple[int, ...]


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
        found = []
        for place, step, shift, size, valid, blocks in zip(
            position, self.step, self.shift, self.size, self.valid, self.blocks
        ):
            found += [place >= 0] if shift < 0 else []
            found += [place < valid] if (blocks - 1) * step + shift + size > valid else []
        return found

    @property
    def inside(self) -> bool:
        return not self.conditions((0, 0, 0))

    @property
    def positions(self) -> int:
        """How many positions a block needs."""
        return self.size[0] * self.size[1] * self.size[2]


@dataclass(frozen=True)
class Stage:
    """One stage as a block sees it."""

    spec: ConvSpec  # with the block's part of the input for its input, zeros included, and channels last
    tile: Tile
    source: Region  # of the stage's input
    out: Dims  # what the block computes, columns rounded up to whole tiles

    @property
    def whole(self) -> Tile:
        """The tile of a result that has whole vectors: what lies between stages, whatever the number of channels."""
        return replace(self.tile, run=round_up(self.tile.run, self.tile.lanes))

    @property
    def lanewise(self) -> bool:
        """Whether a lane reads the input channel of its own output channel alone, so that inputs are vectors."""
        return self.spec.variant == "depthwise"


def plan(spec: ConvSpec, target: Target, knobs: Knobs) -> tuple[Stage, ...]:
    """The stages of a composite spec, for blocks of output of the size that the knobs say."""
    last = spec.stages[-1]
    size = cube(last.out_size)
    tile = _tile(last, target, knobs, size[2], last=True)
    block = block_size(spec, knobs, tile)
    out: Dims = block
    step, shift = block, (0, 0, 0)
    blocks = tuple(ceil_div(whole, part) for whole, part in zip(size, block))
    found: list[Stage] = []
    for stage in reversed(spec.stages):
        if found:
            tile = _tile(stage, target, knobs, out[2], last=False)
            out = (*out[:2], round_up(out[2], tile.columns))
        stride, span, before = cube(stage.stride), cube(stage.span), cube([pad[0] for pad in stage.padding], 0)
        reach = tuple((o - 1) * s + n for o, s, n in zip(out, stride, span))
        step = tuple(a * s for a, s in zip(step, stride))
        shift = tuple(a * s - b for a, s, b in zip(shift, stride, before))
        source = Region(step, shift, reach, cube(stage.in_size), blocks)
        part = stage.replace(
            in_size=reach[3 - spec.rank :], padding=0, layout=LAYOUTS[spec.rank][1], bias=False, residual=False, batch=1
        )
        found.insert(0, Stage(part, tile, source, out))
        out = reach
    return tuple(found)


def block_size(spec: ConvSpec, knobs: Knobs, tile: Tile) -> Dims:
    """Outputs of a block, columns rounded up to whole tiles of the last stage."""
    wide = spec.out_size[-1] if spec.rank > 1 else int(knobs["ow_block"])
    return (int(knobs.get("od_block", 1)), int(knobs["oh_block"]), round_up(wide, tile.columns))


def _tile(stage: ConvSpec, target: Target, knobs: Knobs, width: int, last: bool) -> Tile:
    """The knobs say what a tile has at most: columns are spread evenly, and vectors divide those of a stage's result.

    The output may end in the middle of a channel block. What lies between two stages has whole blocks only, so that
    neither side needs a condition.
    """
    lanewise = stage.variant == "depthwise"
    names = ("dw_tile", "dw_vectors") if lanewise else ("ow_tile", "oc_vectors")
    columns, vectors = (int(knobs[name]) for name in names)
    columns = ceil_div(width, ceil_div(width, columns))
    whole = ceil_div(stage.out_channels, target.lanes)
    if not last or lanewise:
        vectors = max(v for v in range(1, vectors + 1) if whole % v == 0)
    return Tile(1, columns, vectors, target.lanes, target.lanes, 1, stage.out_channels)
