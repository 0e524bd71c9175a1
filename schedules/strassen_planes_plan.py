"""The register tiles, blocks and tasks that a candidate of `strassen_planes` makes: sizes only, no TVM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from convtune.schedules.strassen_plan import PRODUCTS, Factors
from convtune.schedules.tiling import LONG_ACTIVATIONS, ceil_div, spread

from convtune.spec import count

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


@dataclass(frozen=True)
class Plan(Factors):
    """positions: of an image. depth, run: input and output channels.

    outputs, vectors: channels and vectors of positions of a register tile, which is a half of a tile both ways, so a
    tile has four. tile_block: tiles of a task. parts: of the blocks of channels, each a task's. weights_ahead: whether
    U is fetched ahead.
    """

    positions: int
    depth: int
    run: int
    outputs: int
    vectors: int
    lanes: int
    tile_block: int
    parts: int
    copies: bool
    staged: bool
    weights_ahead: bool = False

    @property
    def half(self) -> int:
        """Input channels of the first half; of an odd number the second has one less."""
        return ceil_div(self.depth, 2)

    @property
    def channels(self) -> tuple[int, int]:
        """Output channels of each half."""
        return ceil_div(self.run, 2), self.run // 2

    @property
    def blocks(self) -> int:
        """Of a half of the output channels."""
        return ceil_div(self.channels[0], self.outputs)

    @property
    def width(self) -> int:
        """Positions of a half of a tile."""
        return self.vectors * self.lanes

    @property
    def pairs(self) -> int:
        """Of vectors of positions."""
        return ceil_div(self.positions, 2 * self.lanes)

    @property
    def overlap(self) -> int:
        """Positions that the last tile shares with the one before, since it ends where the positions do."""
        return self.pairs * 2 * self.lanes - self.positions

    @property
    def whole_tiles(self) -> int:
        """Which share none, of `vectors`."""
        return (self.pairs - (self.overlap > 0)) // self.vectors

    @property
    def last_vectors(self) -> int:
        """Of a half of one more tile; 0: there is none."""
        return self.pairs - self.whole_tiles * self.vectors

    @property
    def tiles(self) -> int:
        return self.whole_tiles + (self.last_vectors > 0)

    @property
    def tile_blocks(self) -> int:
        """Of an image."""
        return ceil_div(self.tiles, self.tile_block)

    @property
    def v_shape(self) -> tuple[int, int, int]:
        """(tile, factor, channel and position)."""
        return self.tile_block, len(self.stored), spread(self.half * self.width)

    @property
    def u_shape(self) -> tuple[int, int, int, int]:
        """(block, step, channel, output channel of the block)."""
        return self.blocks, PRODUCTS, self.half, self.outputs

    @property
    def m_shape(self) -> tuple[int, int, int]:
        """(kept value, output channel and vector, lane)."""
        return len(self.kept), self.outputs * self.vectors, self.lanes


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    outputs, vectors, block, parts = (int(knobs[name]) for name in ("channels", "vectors", "tile_block", "parts"))
    sizes = count(spec.out_size), spec.in_channels, spec.out_channels, outputs, vectors, target.lanes, block, parts
    plan = Plan(*sizes, copies=knobs["left"] == "copies", staged=spec.activation in LONG_ACTIVATIONS)
    return replace(plan, weights_ahead=4 * prod(plan.u_shape) > target.l2_bytes // 2)
