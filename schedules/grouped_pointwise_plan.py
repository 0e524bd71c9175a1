"""How a grouped 1 x 1 convolution is cut into vectors across the ends of groups: sizes only, no TVM."""

from __future__ import annotations

from dataclasses import dataclass

from convtune.schedules.tiling import FEWEST_LANES, ceil_div


@dataclass(frozen=True)
class Blocks:
    """The positions of a grouped 1 x 1 convolution as register tiles, blocks and parts, and the outputs of each.

    columns: positions of a register tile. tiles: of positions whose sums are stored together. parts: of the positions,
    a task each.
    """

    channels: int
    groups: int
    depth: int
    lanes: int
    columns: int
    tiles: int
    parts: int
    shuffled: bool

    @property
    def block(self) -> int:
        """Positions whose sums are stored together."""
        return self.columns * self.tiles

    @property
    def run(self) -> int:
        """Output channels of a group."""
        return self.channels // self.groups

    @property
    def all(self) -> range:
        """The vectors of outputs of a position."""
        return range(ceil_div(self.channels, self.lanes))

    @property
    def padded(self) -> int:
        """Output channels in whole vectors."""
        return len(self.all) * self.lanes

    def fits(self, positions: int, l2_bytes: int) -> bool:
        """Whether a part of the positions has a block, and sums of several tiles take a quarter of L2 at most."""
        held = 4 * self.block * self.padded <= l2_bytes / 4 or self.tiles == 1
        return self.block <= positions // self.parts and held

    def sums_of(self, group: int, channel: int) -> int:
        """Where the sums of a position have an output channel of a group."""
        return group * self.run + channel

    def source(self, first: int) -> tuple[int, ...]:
        """Where the sums of a vector of outputs from that channel of y are."""
        channels = range(first, first + self.lanes)
        if self.shuffled:
            return tuple(self.sums_of(c % self.groups, c // self.groups) for c in channels)
        return tuple(self.sums_of(c // self.run, c % self.run) for c in channels)

    @property
    def outputs(self) -> list[tuple[int, tuple[int, ...]]]:
        """The first channel of each vector of outputs, and its source; the last one begins earlier where they do not
        divide the channels."""
        starts = [min(vector * self.lanes, self.channels - self.lanes) for vector in self.all]
        return [(start, self.source(start)) for start in starts]

    def whole_vectors(self, source: tuple[int, ...]) -> tuple[int, ...]:
        """Where the vectors of sums begin that a source is in."""
        return tuple(sorted({place // self.lanes * self.lanes for place in source}))


@dataclass(frozen=True)
class Plan(Blocks):
    """columns x vectors: positions and vectors of a register tile, those of a group side by side."""

    vectors: int
    long: bool = False  # the activation, which is not written out for each vector of a register tile

    @property
    def at_once(self) -> bool:
        """Whether a register tile is stored as it is, since it has all channels of its positions."""
        return len(self.blocks) == 1 and not self.long

    @property
    def in_place(self) -> bool:
        """Whether vectors of sums are stored as they are."""
        return not self.shuffled and not self.long

    @property
    def blocks(self) -> list[range]:
        """The vectors that a register tile has at a time."""
        starts = range(0, len(self.all), self.vectors)
        return [range(start, min(start + self.vectors, len(self.all))) for start in starts]

    @property
    def half(self) -> int:
        """Lanes of a position in the last vector where two positions share it, else 0."""
        few = 0 < self.channels % self.lanes <= self.lanes // 2
        return self.lanes // 2 if few and self.lanes >= 2 * FEWEST_LANES and not self.at_once else 0

    def shares(self, vectors: range) -> bool:
        """Whether the last of these vectors is one that two positions share."""
        return self.half > 0 and vectors.stop == len(self.all)

    def sums(self, vectors: range) -> int:
        """Vectors of sums of a register tile."""
        return self.columns * len(vectors) - (self.columns // 2 if self.shares(vectors) else 0)

    def place(self, vectors: range, column: int, i: int) -> tuple[int, int]:
        """Which of these sums are those of the i-th vector of a position, and their first lane there."""
        if not self.shares(vectors):
            return column * len(vectors) + i, 0
        if i + 1 < len(vectors):
            return column * (len(vectors) - 1) + i, 0
        return self.columns * i + column // 2, column % 2 * self.half

    def kept(self, vectors: range) -> list[tuple[int, int, int, int, int]]:
        """Of each vector of a position: column, number and first lane of its sums, first channel, channels."""
        shared = vectors.stop - 1 if self.shares(vectors) else None
        return [
            (c, *self.place(vectors, c, i), vector * self.lanes, self.half if vector == shared else self.lanes)
            for c in range(self.columns)
            for i, vector in enumerate(vectors)
        ]

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return len(self.blocks), self.depth, self.vectors, self.lanes

    def owners(self, vector: int) -> tuple[int, ...]:
        """Whose channel each lane of a vector has."""
        shared = self.half if vector == self.all[-1] else 0
        channels = (vector * self.lanes + lane % (shared or self.lanes) for lane in range(self.lanes))
        return tuple(min(channel, self.channels - 1) // self.run for channel in channels)

    def groups_of(self, vectors: range | list[int]) -> tuple[int, ...]:
        """Whose channels they have."""
        return tuple(sorted({group for vector in vectors for group in self.owners(vector)}))

    def mixed(self, vectors: range | list[int]) -> set[int]:
        """The groups whose inputs share one of these vectors with other inputs."""
        shared = self.all[-1] if self.half else None
        owners = [(vector, self.groups_of([vector])) for vector in vectors]
        return {group for vector, found in owners if len(found) > 1 or vector == shared for group in found}
