"""The register tiles, blocks and tasks that a candidate of `pointwise_planes` makes: sizes only, no TVM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune.schedules.tiling import ceil_div, even_blocks, round_up

from convtune.spec import count

if TYPE_CHECKING:
    from convtune.space import Knobs, KnobValue, PackStep
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

MOST_CHANNELS = 14  # of a register tile: with 2 vectors of inputs, all 32 registers but the operands
FEWEST_CHANNELS = 4  # that as many vectors of inputs as MOST_VECTORS are multiplied with
MOST_WASTE = 1.1  # times as many channels are computed as there are


@dataclass(frozen=True)
class Plan:
    """Sizes: positions x depth times depth x run of a group, in register tiles of outputs x vectors."""

    positions: int
    depth: int
    run: int
    outputs: int
    vectors: int
    lanes: int
    block: int  # vectors
    parts: int
    copied: bool

    @property
    def blocks(self) -> int:
        """Of output channels."""
        return ceil_div(self.run, self.outputs)

    def packed(self, groups: int) -> tuple[PackStep, ...]:
        """A weight (oc, depth) to (group, block, depth, channel in block), zeros where a group ends."""
        return (
            {"op": "reshape", "shape": [groups, self.run, self.depth]},
            {"op": "pad", "widths": [[0, 0], [0, self.blocks * self.outputs - self.run], [0, 0]]},
            {"op": "reshape", "shape": [groups, self.blocks, self.outputs, self.depth]},
            {"op": "transpose", "axes": [0, 1, 3, 2]},
        )

    @property
    def width(self) -> int:
        """Positions of a tile."""
        return self.vectors * self.lanes

    @property
    def whole_tiles(self) -> int:
        return ceil_div(self.positions, self.lanes) // self.vectors

    @property
    def last_vectors(self) -> int:
        """Of one more tile; 0: there is none."""
        return ceil_div(self.positions, self.lanes) % self.vectors

    @property
    def tiles(self) -> int:
        return self.whole_tiles + (self.last_vectors > 0)

    @property
    def tile_block(self) -> int:
        """Tiles of a block of positions."""
        return min(self.tiles, ceil_div(self.block, self.vectors))

    @property
    def position_blocks(self) -> int:
        return ceil_div(self.tiles, self.tile_block)

    @property
    def block_positions(self) -> int:
        return self.tile_block * self.width

    @property
    def panel_bytes(self) -> int:
        """Of the inputs of a block of positions."""
        return 4 * self.depth * self.block_positions


def tile_heights(run: int) -> tuple[int, ...]:
    """Heights of tiles worth trying, in channels: those that leave little of the last block empty."""
    sizes = [size for size in even_blocks(run, MOST_CHANNELS) if round_up(run, size) <= MOST_WASTE * run]
    return tuple(size for size in sizes if size >= min(FEWEST_CHANNELS, sizes[-1]))


def fills_registers(target: CpuTarget, knobs: Knobs, domain: Mapping[str, tuple[KnobValue, ...]]) -> bool:
    """Whether the sums of a tile of `channels` x `vectors` fill at least half of the registers that its inputs and a
    weight leave, and no more than all; less than half only if no tile of the domain is larger."""
    channels, vectors = int(knobs["channels"]), int(knobs["vectors"])
    sums, most = channels * vectors, target.tile_registers - vectors - 1
    largest = channels == domain["channels"][-1] and vectors == domain["vectors"][-1]
    return sums <= most and (sums >= most // 2 or largest)


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    sizes = count(spec.out_size), spec.in_channels // spec.groups, spec.out_channels // spec.groups
    outputs, vectors, block, parts = (int(knobs[name]) for name in ("channels", "vectors", "block", "parts"))
    return Plan(*sizes, outputs, vectors, target.lanes, block, parts, knobs["panel"] == "copied")
