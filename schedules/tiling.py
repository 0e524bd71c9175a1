"""What the register-tile schedules share: sizes of tiles and blocks, and the loops from the store to the registers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune import variants
from convtune.expression import cube, output
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.space import PackStep
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


LARGEST_BODY = 320  # FMAs in an unrolled body: beyond it LLVM's time grows faster than the gain
LARGEST_CODE = 900  # FMAs of all tiles that are written out: LLVM needs a second for some thousand
FEWEST_LANES = 4  # of a vector that is worth permutes
COPIED_COLUMNS = 64  # of a row of one dimension, in a task of its own
LINE_BYTES = 64  # of a cache line
LINE = LINE_BYTES // 4  # float32 elements of one
WAY_BYTES = 4096  # so far apart, data falls into one set of a first cache: a way is no larger than a page
WAYS = 8  # of a first cache, at least
FEW_CHANNELS = 8  # that are read side by side where they lie apart
FEWEST_STEPS = 128  # of the reduction between two additions to sums in memory
MOST_VECTORS = 4  # of channels in a register tile: of 32 registers more need hardly fewer loads a product
MOST_WASTE = 1.04  # times as much is computed as with the tile width that wastes least
LONG_ACTIVATIONS = ("silu", "gelu", "sigmoid", "tanh")


def ceil_div(size: int, block: int) -> int:
    return -(-size // block)


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is at least `size`."""
    return ceil_div(size, multiple) * multiple


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


def spaced(values: Iterable[int], count: int) -> tuple[int, ...]:
    """At most `count` of the values, about evenly spaced in their logarithm, both ends kept."""
    ordered = sorted(set(values))
    if len(ordered) <= count:
        return tuple(ordered)
    low, high = ordered[0], ordered[-1]
    wanted = [low * (high / low) ** (i / (count - 1)) for i in range(count)]
    return tuple(sorted({min(ordered, key=lambda v: abs(v - w)) for w in wanted}))


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


def needs_staging(spec: ConvSpec, tile: Tile) -> bool:
    """Whether the store goes through a copy of the tile in memory.

    Accumulators stay in registers only while every access to them has a constant index, so a direct store is fully
    unrolled; one that goes lane by lane, or has a long activation in it, would be too much code for that.
    """
    return spec.activation in LONG_ACTIVATIONS or not stores_vectors(spec, tile)


def stores_vectors(spec: ConvSpec, tile: Tile) -> bool:
    """Whether a vector of accumulators is a vector of the output."""
    whole = tile.lanes == tile.width and tile.run % tile.lanes == 0
    return spec.channels_last and whole and not _interleaved(spec, tile)


def _interleaved(spec: ConvSpec, tile: Tile) -> bool:
    return tile.groups > 1 and variants.primitive(spec.stages[-1]).interleaved


@dataclass
class OutputLoops:
    """The loops of the stage `y`, split for a tile; loops that a rank lacks are left out."""

    outer: list[Any]  # n, od, oh_outer, ow_outer: what tasks are made of
    channels: Any  # channel blocks
    inner: list[Any]  # tiles of a task: oh_middle, ow_middle
    store: list[Any]  # within a tile: oh_inner, ow_inner, vector, lane


def split_output(
    sch: Any, spec: ConvSpec, tile: Tile, oh_block: int, ow_block: int, n_block: int = 1, od_block: int = 1
) -> OutputLoops:
    """Splits `y` into tasks of n_block x od_block x oh_block x ow_block tiles, tiles, and what a tile stores."""
    n, *rest = sch.get_loops(sch.get_sblock("y"))
    spatial, channels = (
        (rest[: spec.rank], rest[spec.rank :]) if spec.channels_last else (rest[-spec.rank :], rest[: -spec.rank])
    )
    if _interleaved(spec, tile):
        channels = channels[::-1]
        sch.reorder(*channels)
    blocks, vector, lane = split_channels(sch, channels, tile)
    ow_tiles, ow_inner = sch.split(spatial[-1], [None, tile.columns])
    split = [(n, n_block)] if n_block > 1 else []
    split += [(spatial[0], od_block)] if od_block > 1 else []
    whole = [loop for loop in (n, *spatial[:-2]) if all(loop is not other for other, _ in split)]
    pairs = [sch.split(loop, [None, block]) for loop, block in split]
    ow_outer, ow_middle = sch.split(ow_tiles, [None, ow_block])
    outer, inner = [*whole, *(pair[0] for pair in pairs)], [pair[1] for pair in pairs]
    if spec.rank == 1:
        return OutputLoops([*outer, ow_outer], blocks, [*inner, ow_middle], [ow_inner, vector, lane])
    oh_tiles, oh_inner = sch.split(spatial[-2], [None, tile.rows])
    oh_outer, oh_middle = sch.split(oh_tiles, [None, oh_block])
    inner += [oh_middle, ow_middle]
    return OutputLoops([*outer, oh_outer, ow_outer], blocks, inner, [oh_inner, ow_inner, vector, lane])


def split_channels(sch: Any, channels: Sequence[Any], tile: Tile) -> tuple[Any, Any, Any]:
    """Splits the loops (group, channel of a run) into channel blocks, vectors of a block, and lanes."""
    *group, run = channels
    if tile.run % tile.lanes == 0:  # then the border's condition is one of whole vectors
        vectors, lane = sch.split(run, [None, tile.lanes])
        block, vector = sch.split(vectors, [None, tile.vectors])
    else:
        block, inner = sch.split(run, [None, tile.block])
        vector, lane = sch.split(inner, [tile.vectors, tile.lanes])
    return (sch.fuse(*group, block) if group else block), vector, lane


def merge_groups(sch: Any, spec: ConvSpec, tile: Tile) -> None:
    """Gives `y` the spec's shape, with one dimension of channels, once nothing needs to see two of them any more."""
    if tile.groups == 1:
        return
    inner = tile.groups if _interleaved(spec, tile) else tile.run
    if spec.channels_last:
        sch.transform_layout("y", ("write", 0), lambda *i: [*i[:-2], i[-2] * inner + i[-1]])
    else:
        sch.transform_layout("y", ("write", 0), lambda n, outer, channel, *i: [n, outer * inner + channel, *i])


def unroll(sch: Any, loops: Sequence[Any]) -> None:
    """Unrolls all loops but the last, which becomes vectors."""
    for loop in loops[:-1]:
        sch.unroll(loop)
    sch.vectorize(loops[-1])


def place_store(sch: Any, spec: ConvSpec, tile: Tile, at: Any, store: Sequence[Any], stage: str = "") -> None:
    """Makes the store of a tile vectors, or lets it read the stage `tile`, a copy in memory.

    stage: what follows the names `tile` and `acc`, where several convolutions have them.
    """
    if not needs_staging(spec, tile):
        unroll(sch, store)
        return
    staged = sch.get_sblock(f"tile{stage}")
    sch.compute_at(staged, at, preserve_unit_loops=True)
    unroll(sch, sch.get_loops(staged)[-4:])
    _vectorize_copy(sch, spec, tile, store)


def place_sums(sch: Any, spec: ConvSpec, tile: Tile, at: Any, store: Sequence[Any]) -> Any:
    """Computes `sums` at a loop around tiles, part after part; returns the innermost loop over the tiles of a part."""
    sums = sch.get_sblock("sums")
    sch.compute_at(sums, at, preserve_unit_loops=True)
    *around, part = sch.get_loops(sums)
    tiles, inner = around[-10:-4], around[-4:]
    sch.reorder(part, *tiles, *inner)
    unroll(sch, inner)
    unroll(sch, sch.get_loops(sch.decompose_reduction(sums, part))[-4:])
    _vectorize_copy(sch, spec, tile, store)
    return tiles[-1]


def _vectorize_copy(sch: Any, spec: ConvSpec, tile: Tile, store: Sequence[Any]) -> None:
    """Arranges the store of a tile that lies in memory."""
    if stores_vectors(spec, tile):
        sch.vectorize(store[-1])
    elif not spec.channels_last:  # one channel after the other, for the reason of `copy_channels`
        *_, column, vector, lane = store
        sch.reorder(vector, lane, column)
    elif tile.lanes == tile.width and not _interleaved(spec, tile):
        vectorize_inside(sch, store[-2], store[-1])


def vectorize_inside(sch: Any, vectors: Any, lane: Any) -> None:
    """Makes vectors of `lane` for all turns of `vectors` but the last, if a border cuts that one short."""
    sch.vectorize(lane)
    sch.annotate(vectors, "pragma_loop_partition_hint", 1)


def place_accumulators(
    sch: Any, at: Any, reductions: int, order: Sequence[int], unrolled: int, scope: str = "local", stage: str = ""
) -> Any:
    """Computes `acc` at a loop, in registers: its reduction loops in `order`, the last `unrolled` of them unrolled.

    Returns the outermost reduction loop.

    scope: TVM 0.27 puts less than 1 KiB of "global" on the stack, where LLVM sees that it is nothing but registers. All
    else lies in workspace, and the sums are stored there too: per tile, or per turn of a loop that LLVM does not see
    through. What is faster depends on how much LLVM then moves around in the unrolled body.
    """
    acc = sch.get_sblock(f"acc{stage}")
    sch.compute_at(acc, at, preserve_unit_loops=True)
    loops = sch.get_loops(acc)
    axes, tile = loops[-reductions:], loops[-reductions - 4 : -reductions]
    axes = [axes[i] for i in order]
    sch.reorder(*axes, *tile)
    unroll(sch, [*axes[len(axes) - unrolled :], *tile])
    unroll(sch, sch.get_loops(sch.decompose_reduction(acc, axes[0]))[-4:])
    sch.set_scope(acc, 0, scope)
    return axes[0]


def tiled_sums(spec: ConvSpec, tile: Tile, outer: Sequence[int], summand: Any, stage: str = "") -> Any:
    """The stages `acc`: (*outer, group, block, row, column, vector, lane), and where needed `tile`, its copy."""
    from tvm import te

    shape = (*outer, tile.groups, tile.blocks, tile.rows, tile.columns, tile.vectors, tile.width)
    acc = te.compute(shape, summand, name=f"acc{stage}")
    return te.compute(shape, lambda *i: acc[i], name=f"tile{stage}") if needs_staging(spec, tile) else acc


def tiled_output(arguments: Any, tile: Tile, outer: Sequence[int], summand: Any) -> Any:
    """The stages `acc`, where needed `tile`, and `y`, in terms of tiles.

    acc: (n, d, h_tile, w_tile, group, block, row, column, vector, lane) sums `summand` of these ten indices; `outer`
    are the first four extents.
    """
    return _tiles_to_output(arguments, tile, tiled_sums(arguments.spec, tile, outer, summand))


def summed_output(arguments: Any, tile: Tile, outer: Sequence[int], parts: int, summand: Any) -> Any:
    """As `tiled_output`, for a reduction in `parts`: `sums` has the shape of its `acc`, and lies in memory.

    acc: (n, d, h_tile, w_tile, part, group, block, row, column, vector, lane), of which `summand` takes the indices.
    """
    from tvm import te

    channels = (tile.groups, tile.blocks, tile.rows, tile.columns, tile.vectors, tile.width)
    acc = te.compute((*outer, parts, *channels), summand, name="acc")
    part = te.reduce_axis((0, parts), "part")
    sums = te.compute(
        (*outer, *channels), lambda *i: te.sum(acc(*i[: len(outer)], part, *i[len(outer) :]), axis=[part]), name="sums"
    )
    return _tiles_to_output(arguments, tile, sums)


def _tiles_to_output(arguments: Any, tile: Tile, result: Any) -> Any:
    def value(n: Any, group: Any, within: Any, position: Any) -> Any:
        d, h, w = position
        block, vector, lane = tile.locate(within)
        rows, columns = tile.rows, tile.columns
        return result(n, d, h // rows, w // columns, group, block, h % rows, w % columns, vector, lane)

    return output(arguments, tile.groups, value)


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


def place_pad(sch: Any, spec: ConvSpec, target: CpuTarget, task: Any) -> None:
    """Computes the stage `pad` in a task; or, where that is None, once for all in a parallel region of its own."""
    pad = sch.get_sblock("pad")
    if task is not None:
        sch.compute_at(pad, task, preserve_unit_loops=True)
    *_, n, d, h, w, c = sch.get_loops(pad)
    if spec.in_channels % target.lanes == 0 and spec.in_channels * spec.stride[-1] * 4 % WAY_BYTES == 0:
        sch.storage_align(pad, 0, 3, spec.in_channels, target.lanes)  # columns of a tile in sets of their own
    if task is None:
        outer = [n, d, h]
        if spec.rank == 1:
            part, w = sch.split(w, [None, COPIED_COLUMNS])
            outer.append(part)
        sch.parallel(sch.fuse(*outer))
    copy_channels(sch, spec, target, w, c)


def copy_channels(sch: Any, spec: ConvSpec, target: CpuTarget, column: Any, channel: Any) -> None:
    """Arranges the two inner loops of a copy of x that has its channels last.

    Channels that lie apart in x are copied a few at a time: a power of two apart, which is common, more of them fall
    into the same set of the first cache, and each of their lines would be read again for every column.
    """
    if not spec.channels_last:
        channels, few = sch.split(channel, [None, gcd(spec.in_channels, FEW_CHANNELS)])
        sch.reorder(channels, column, few)
        sch.vectorize(few)
    elif spec.in_channels % target.lanes == 0:
        sch.vectorize(sch.split(channel, [None, target.lanes])[1])
    else:
        # a row lies in one piece, so only its ends have to be looked at element by element
        vectorize_inside(sch, *sch.split(sch.fuse(column, channel), [None, target.lanes]))
