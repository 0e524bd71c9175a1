"""Sizes of a deformable convolution's products by Strassen's algorithm."""

from __future__ import annotations

from dataclasses import dataclass

from convtune.schedules import strassen_plan
from convtune.schedules.tiling import round_up


@dataclass(frozen=True, kw_only=True)
class Plan(strassen_plan.Plan):
    """taps: of a part, of which there are `cuts`. all_taps: of an output, of all offset groups.

    tasks: have `tile_block` tiles, or some of them less. piece: channels side by side that are of one offset group, in
    each half, or half of a half.
    """

    tasks: int
    cuts: int
    piece: int
    all_taps: int

    @property
    def tile_blocks(self) -> int:
        return self.tasks

    @property
    def pieces(self) -> int:
        return self.half // self.piece

    @property
    def wide(self) -> int:
        """Channels side by side in V: a vector, or as many as divide a piece."""
        return widest(self.piece, self.lanes)

    @property
    def v_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(factor, tile, chunk, column, channel), the order in which a product reads them."""
        return len(self.stored), self.tile_block, self.steps // self.wide, self.columns, self.wide

    @property
    def samples_shape(self) -> tuple[int, ...]:
        """Of two levels: (tile, chunk, column, block of the outer and the inner level, channel)."""
        return self.tile_block, self.steps // self.wide, self.columns, 4**self.levels, self.wide

    @property
    def u_shape(self) -> tuple[int, int, int, int]:
        """(part of the taps and block, step, channel, output channel of the block)."""
        blocks, *rest = super().u_shape
        return self.cuts * blocks, rest[0], rest[1], rest[2]

    @property
    def tables(self) -> int:
        """Tiles of which a task has tables at a time."""
        return self.tile_block if self.cuts > 1 else 1

    @property
    def entries(self) -> int:
        """Of a tile's table, in whole vectors."""
        return round_up(self.tile * self.all_taps, self.lanes)


def widest(piece: int, lanes: int) -> int:
    """The most channels, of at most a vector, that divide a piece."""
    return max(size for size in range(1, lanes + 1) if piece % size == 0)
