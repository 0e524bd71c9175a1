"""Sizes that the register-tile schedules share: tiles and blocks, what caches and registers hold, packed weights."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune import variants
from convtune.expression import cube
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.space import PackStep
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


LARGEST_BODY = 320  # FMAs in an unrolled body: beyond it LLVM's time grows faster than the gain
LARGEST_CODE = 900  # FMAs of all tiles that are written out: LLVM needs a second for some thousand
FEWEST_LANES = 4  # of a vector that is worth permutes
LINE_BYTES = 64  # of a cache line
LINE = LINE_BYTES // 4  # float32 elements of one
WAY_BYTES = 4096  # so far apart, data falls into one set of a first cache: a way is no larger than a page
WAYS = 8  # of a first cache, at least
FEWEST_STEPS = 128  # of the reduction between two additions to sums in memory
MOST_VECTORS = 4  # of channels in a register tile: of 32 registers more need hardly fewer loads a product
MOST_WASTE = 1.04  # times as much is computed as with the tile width that wastes least
FEWEST_TASKS = 8  # that a parallel loop is cut into where it moves elements alone
MOST_HALVINGS = 6  # of what is a thread's: into so small tasks
SMALLEST_TILE = 6  # sums of a register tile, but where the output has no more: fewer wait for each other
LONG_ACTIVATIONS = ("silu", "gelu", "sigmoid", "tanh")


def ceil_div(size: int, block: int) -> int:
    return -(-size // block)


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is at least `size`."""
    return ceil_div(size, multiple) * multiple


def power_of_two(most: int) -> int:
    """The largest one up to `most`."""
    return 1 << (most.bit_length() - 1)


def spread(elements: int) -> int:
    """The distance of what a tile reads together: an odd number of lines, so that it does not share a cache's sets."""
    lines = ceil_div(elements, LINE)
    return (lines + (lines % 2 == 0)) * LINE


def planes_collide(spec: ConvSpec) -> bool:
    """Whether planes are so far apart that the rows of all channels displace each other in the first two caches."""
    return 4 * count(spec.in_size) % (4 * WAY_BYTES) == 0


def columns_collide(channels: int, columns: int) -> bool:
    """Whether positions that lie so many channels apart displace each other in the first cache, of so many at once."""
    return channels * 4 % WAY_BYTES == 0 and columns > WAYS


@functools.lru_cache(maxsize=4096)  # asked for each candidate, of which a long row has blocks by the thousand
def even_blocks(size: int, most: int) -> tuple[int, ...]:
    """Block sizes worth trying for a loop: for every number of blocks the smallest that needs no more, up to `most`."""
    return tuple(sorted({ceil_div(size, n) for n in range(1, size + 1)} & set(range(1, most + 1))))


def task_parts(target: CpuTarget, most: int, halvings: int = MOST_HALVINGS) -> tuple[int, ...]:
    """Into how many parts tasks may cut something, at most that: one, a part a thread, and these halved so often."""
    return tuple(sorted({1, *(parts for i in range(halvings + 1) if (parts := target.threads << i) <= most)}))


def spaced(values: Iterable[int], count: int) -> tuple[int, ...]:
    """At most `count` of the values, about evenly spaced in their logarithm, both ends kept."""
    ordered = sorted(set(values))
    if len(ordered) <= count:
        return tuple(ordered)
    low, high = ordered[0], ordered[-1]
    wanted = [low * (high / low) ** (i / (count - 1)) for i in range(count)]
    return tuple(sorted({min(ordered, key=lambda v: abs(v - w)) for w in wanted}))


def width_blocks(spec: ConvSpec, width: int, columns: Sequence[int], most: int = 4) -> tuple[int, ...]:
    """Tiles of a row, of one of these widths, that a task may have: where rows are all there is, parts of them."""
    return spaced(even_blocks(ceil_div(width, max(columns)), 64), most) if spec.rank == 1 else (width,)


@dataclass(frozen=True)
class Tile:
    """A register tile of output: rows x columns x vectors of `width` lanes, and how channels fill the vectors.

    Channels come in `groups` runs of `run`; each run is cut into blocks of vectors * lanes and rounded up. `lanes` are
    the lanes of a vector that hold channels, the first ones.
    """

    rows: int
    columns: int
    vectors: int
    lanes: int
    width: int
    groups: int
    run: int

    @property
    def block(self) -> int:
        """Channels of a block."""
        return self.vectors * self.lanes

    @property
    def blocks(self) -> int:
        """Channel blocks of a run."""
        return ceil_div(self.run, self.block)

    def locate(self, within: Any) -> tuple[Any, Any, Any]:
        """A channel of a run as (block, vector, lane)."""
        return within // self.block, within % self.block // self.lanes, within % self.block % self.lanes


def column_tile(spec: ConvSpec, target: CpuTarget, columns: int, vectors: int) -> Tile:
    """Of one row, and of whole vectors of a group's channels."""
    return Tile(1, columns, vectors, target.lanes, target.lanes, spec.groups, spec.out_channels // spec.groups)


def needs_staging(spec: ConvSpec, tile: Tile) -> bool:
    """Whether the store goes through a copy of the tile in memory.

    Accumulators stay in registers only while every access to them has a constant index, so a direct store is fully
    unrolled; one that goes lane by lane, or has a long activation in it, would be too much code for that.
    """
    return spec.activation in LONG_ACTIVATIONS or not stores_vectors(spec, tile)


def stores_vectors(spec: ConvSpec, tile: Tile) -> bool:
    """Whether a vector of accumulators is a vector of the output."""
    whole = tile.lanes == tile.width and tile.run % tile.lanes == 0
    return spec.channels_last and whole and not is_interleaved(spec, tile)


def is_interleaved(spec: ConvSpec, tile: Tile) -> bool:
    """Whether neighbouring channels of the output are of different groups: after a channel shuffle."""
    return tile.groups > 1 and variants.primitive(spec.stages[-1]).interleaved


def pack_blocks(spec: ConvSpec, tile: Tile, parts: int = 1) -> tuple[PackStep, ...]:
    """PyTorch's (oc, ic, taps) to (group, block, part, kd, kh, kw, ic of a part, channel in block), zeros where a run
    ends; with one part, that dimension is left out."""
    rank, depth = spec.rank, spec.in_channels // spec.groups
    full = tile.blocks * tile.block
    split = [depth] if parts == 1 else [parts, depth // parts]
    last = 2 + len(split)  # after group, block, channel in block and input channels come the taps
    return (
        {"op": "reshape", "shape": [tile.groups, tile.run, depth, *spec.kernel]},
        {"op": "pad", "widths": [[0, 0], [0, full - tile.run], *([0, 0] for _ in range(rank + 1))]},
        {"op": "reshape", "shape": [tile.groups, tile.blocks, tile.block, *split, *spec.kernel]},
        {"op": "transpose", "axes": [0, 1, *range(3, last), *range(last + 1, last + 1 + rank), last, 2]},
        {"op": "reshape", "shape": list(packed_blocks(spec, tile, parts))},
    )


def packed_blocks(spec: ConvSpec, tile: Tile, parts: int = 1) -> tuple[int, ...]:
    """The shape that `pack_blocks` makes of a weight."""
    depth = spec.in_channels // spec.groups
    split = () if parts == 1 else (parts,)
    return (tile.groups, tile.blocks, *split, *cube(spec.kernel), depth // parts, tile.block)


def most_columns(target: CpuTarget, vectors: int) -> int:
    """Columns of a register tile of so many vectors: beside the sums it has a column of weights and an input."""
    return (target.tile_registers - 1) // vectors - 1


def least_waste(computed: Mapping[int, float]) -> list[int]:
    """Tile widths worth trying, of those given with how much they have computed.

    Little more than the best one has, and less than any wider one: narrower ones load weights more often.
    """
    good = [width for width in computed if computed[width] <= MOST_WASTE * min(computed.values())]
    return [width for width in good if all(computed[width] < computed[wider] for wider in good if wider > width)]


def suits_registers(target: CpuTarget, columns: int, vectors: int, width: int) -> bool:
    """Whether a tile of columns x vectors, on an output row of `width`, neither spills nor leaves the FMAs idle.

    Few sums neither hide the latency of an FMA nor pay for their loads; the output may be too small for more.
    """
    registers = target.tile_registers
    least = min(registers // 3, min(width, most_columns(target, vectors)) * vectors)
    return columns * vectors + vectors + 1 <= registers and columns * vectors >= least


def reduction_blocks(spec: ConvSpec, target: CpuTarget) -> tuple[int, ...]:
    """Input channels whose weights one pass of a task reads: all, or as many as leave the second cache half empty.

    None where the weights of every channel block do that anyway.
    """
    depth, taps = spec.in_channels // spec.groups, count(spec.kernel)
    most = min(MOST_VECTORS, ceil_div(spec.out_channels // spec.groups, target.lanes))
    blocks = {depth}
    for vectors in range(most, 0, -2):
        room = target.l2_bytes // 2 // (taps * vectors * target.vector_bytes)
        fitting = [n for n in range(ceil_div(FEWEST_STEPS, taps), min(room, depth) + 1) if depth % n == 0]
        blocks.update(fitting[-1:])
    return tuple(sorted(blocks)) if len(blocks) > 1 else ()
