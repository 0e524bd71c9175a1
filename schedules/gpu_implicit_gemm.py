"""A convolution as a matrix product whose left matrix is gathered from x: a block's tile, packed weights, stages.

Rows are the output positions of all images, columns the output channels of a group, the depth its input channels times
the kernel's taps. `tile` is what a block gathers for one chunk of the depth, `acc` its sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_tiling import WIDE, Split, axis_split
from convtune.schedules.one_row import reads_own_place
from convtune.schedules.tiling import ceil_div

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, epilogue, operands, or_zero, widened, zero_padded
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.space import PackStep
    from convtune.spec import ConvSpec

Dims = tuple[int, ...]

VARIANTS = ("conv", "pointwise", "dilated", "grouped", "shuffled_grouped")
STAGES = {"none": 1, "async2": 2, "async3": 3}
"""Of each pipeline, how many chunks are in shared memory at a time."""


@dataclass(frozen=True)
class BlockTile:
    """What a block and each of its threads compute, and how the depth is cut into chunks.

    positions: of a block, over all images. channels: of a block, of each of its `groups`; above one group a thread has
    all of a group's channels. taps: of a chunk, per dimension. depth: input channels of a chunk. slices: blocks that
    share a sum, each over some of the input channels.
    """

    spec: ConvSpec
    positions: int
    channels: int
    groups: int
    thread_positions: int
    thread_channels: int
    depth: int
    taps: Dims
    slices: int

    @property
    def outputs(self) -> int:
        """Rows of the matrix product."""
        return self.spec.batch * count(self.spec.out_size)

    @property
    def run(self) -> int:
        """Output channels of a group."""
        return self.spec.out_channels // self.spec.groups

    @property
    def run_in(self) -> int:
        """Input channels of a group."""
        return self.spec.in_channels // self.spec.groups

    @property
    def position_split(self) -> Split:
        """Positions of a block as (part of a thread, thread, side by side in a thread)."""
        aligned = 1 if self.spec.channels_last else gcd(WIDE, count(self.spec.out_size))
        return axis_split(self.positions, self.thread_positions, aligned)

    @property
    def channel_split(self) -> Split:
        """Channels of a block as (part of a thread, thread, side by side in a thread)."""
        aligned = gcd(WIDE, self.run) if self.spec.channels_last else WIDE
        return axis_split(self.channels, self.thread_channels, aligned)

    @property
    def threads(self) -> tuple[int, int]:
        """Of a block, along y and x: neighbours along x store to neighbouring memory."""
        positions, channels = self.position_split[1], self.groups * self.channel_split[1]
        return (positions, channels) if self.spec.channels_last else (channels, positions)

    @property
    def blocks(self) -> int:
        """Of the grid."""
        across = ceil_div(self.outputs, self.positions) * ceil_div(self.run, self.channels)
        return across * (self.spec.groups // self.groups) * self.slices

    @property
    def chunks(self) -> Dims:
        """Chunks of a slice: of input channels, and of taps per dimension."""
        taps = (k // t for k, t in zip(cube(self.spec.kernel), self.taps))
        return (ceil_div(self.run_in, self.depth * self.slices), *taps)

    @property
    def chunk(self) -> int:
        """The depth of a chunk, in products."""
        return self.depth * count(self.taps)

    @property
    def gathered(self) -> int:
        """Elements of x that a thread reads at once."""
        spec = self.spec
        if spec.channels_last:
            return gcd(WIDE, gcd(self.depth, self.run_in))
        return self.position_split[2] if reads_own_place(spec) else 1

    @property
    def row(self) -> int:
        """Elements from one position of `tile` to the next where channels are last: an odd number of vectors, so that
        neighbours lie in different banks."""
        vectors = self.chunk * self.groups // self.gathered
        return (vectors + 1 - vectors % 2) * self.gathered

    @property
    def tile_elements(self) -> int:
        """Of `tile`."""
        return self.positions * (self.row if self.spec.channels_last else self.chunk * self.groups)

    @property
    def weight_elements(self) -> int:
        """Of a chunk's weights."""
        return self.chunk * self.groups * self.channels


def chunk_taps(spec: ConvSpec, depth: int, most: int) -> Dims:
    """The taps of a chunk: one, or all of the last dimensions where a group's channels alone make a short chunk."""
    kd, kh, kw = cube(spec.kernel)
    choices = [(1, 1, 1), (1, 1, kw), (1, kh, kw), (kd, kh, kw)]
    if depth < spec.in_channels // spec.groups:
        return choices[0]
    return max((taps for taps in choices if taps == (1, 1, 1) or depth * count(taps) <= most), key=count)


def packed_shape(tile: BlockTile) -> Dims:
    """The shape that `pack` makes of a weight."""
    groups, blocks = tile.spec.groups // tile.groups, ceil_div(tile.run, tile.channels)
    return (groups, blocks, tile.slices, *tile.chunks, *tile.taps, tile.depth, tile.groups, *tile.channel_split)


def pack(tile: BlockTile) -> tuple[PackStep, ...]:
    """PyTorch's (oc, ic, taps) to whole chunks, as a block reads them; zeros where channels end."""
    spec, run, run_in = tile.spec, tile.run, tile.run_in
    groups, blocks = spec.groups // tile.groups, ceil_div(run, tile.channels)
    steps, *outer = tile.chunks
    taps = [part for both in zip(outer, tile.taps) for part in both]
    full_in = tile.slices * steps * tile.depth
    whole = [groups, tile.groups, blocks, tile.channels, tile.slices, steps, tile.depth, *taps]
    nothing = [[0, 0]] * 3
    return (
        {"op": "reshape", "shape": [spec.groups, run, run_in, *cube(spec.kernel)]},
        {"op": "pad", "widths": [[0, 0], [0, blocks * tile.channels - run], [0, full_in - run_in], *nothing]},
        {"op": "reshape", "shape": whole},
        {"op": "transpose", "axes": [0, 2, 4, 5, 7, 9, 11, 8, 10, 12, 6, 1, 3]},
        {"op": "reshape", "shape": list(packed_shape(tile))},
    )


def unflattened(spec: ConvSpec, output: Any) -> tuple[Any, tuple[Any, ...]]:
    """A row as its image and its position, of the spec's rank."""
    place: list[Any] = []
    for size in reversed(spec.out_size):
        place.insert(0, output % size)
        output = output // size
    return output, tuple(place)


@dataclass(frozen=True)
class Place:
    """Where in the output an element of a block's tile is."""

    output: Any  # the row
    group: Any
    within: Any  # the channel of the group

    @classmethod
    def of(cls, tile: BlockTile, index: Sequence[Any]) -> Place:
        """index: of `acc`, without the slice."""
        positions, channels = (index[:4], index[4:]) if tile.spec.channels_last else (index[6:], index[:6])
        block, *part = positions
        g, gi, cb, *column = channels
        return cls(
            block * tile.positions + _joined(tile.position_split, part),
            g * tile.groups + gi,
            cb * tile.channels + _joined(tile.channel_split, column),
        )


def _joined(split: Split, part: Sequence[Any]) -> Any:
    _, threads, inner = split
    return (part[0] * threads + part[1]) * inner + part[2]


def expression(tile: BlockTile) -> Any:
    """The function with the stages `tile`, `acc` and `y`, which has the shape of `acc`.

    acc: where channels are last (block, *position_split, groups' block, group, block, *channel_split), else the
        channels first; before these the slice, where there are several. Then `acc` is stored as `part`, which is
        summed up in `total`, and `y` has the spec's shape.
    """
    from tvm import te

    spec = tile.spec
    arguments = Arguments(spec, [packed_shape(tile)])
    weight, read_tile = arguments.weights[0], _tile(tile, arguments)
    names = ("ic_outer", "kd_outer", "kh_outer", "kw_outer", "kd", "kh", "kw", "ic")
    axes = [te.reduce_axis((0, extent), name) for extent, name in zip((*tile.chunks, *tile.taps, tile.depth), names)]
    chunk, taps, ic = axes[:4], axes[4:7], axes[7]

    def summand(slice_: Any, *index: Any) -> Any:
        (b, *part), (g, gi, cb, *column) = (index[:4], index[4:]) if spec.channels_last else (index[6:], index[:6])
        filters = weight(g, cb, slice_, *chunk, *taps, ic, gi, *column)
        gathered = read_tile(b, g, slice_, chunk, taps, gi, ic, part)
        return te.sum(widened(gathered) * widened(filters), axis=axes)

    rows = (ceil_div(tile.outputs, tile.positions), *tile.position_split)
    columns = (spec.groups // tile.groups, tile.groups, ceil_div(tile.run, tile.channels), *tile.channel_split)
    shape = (*rows, *columns) if spec.channels_last else (*columns, *rows)
    if tile.slices > 1:
        acc = te.compute((tile.slices, *shape), summand, name="acc")
        part = te.compute(acc.shape, lambda *i: acc(*i), name="part")
        return arguments.primfunc(_summed(tile, arguments, part))
    acc = te.compute(shape, lambda *i: summand(0, *i), name="acc")

    def at(*index: Any) -> Any:
        return _finished(tile, arguments, Place.of(tile, index), acc(*index))

    return arguments.primfunc(te.compute(shape, at, name="y"))


def located(tile: BlockTile, *index: Any) -> tuple[Any, ...]:
    """An index of `acc`, without the slice, as (n, oc, *position)."""
    return _located(tile, Place.of(tile, index))


def exists(tile: BlockTile, *index: Any) -> list[Any]:
    """What must hold for an index of `acc`, without the slice, to be in the output; only what can fail."""
    place = Place.of(tile, index)
    rows = [place.output < tile.outputs] if tile.outputs % tile.positions else []
    return rows + ([place.within < tile.run] if tile.run % tile.channels else [])


def _located(tile: BlockTile, place: Place) -> tuple[Any, ...]:
    n, position = unflattened(tile.spec, place.output)
    return n, variants.primitive(tile.spec).channel(tile.spec, place.group, place.within), *position


def _finished(tile: BlockTile, arguments: Arguments, place: Place, value: Any) -> Any:
    n, oc, *position = _located(tile, place)
    return epilogue(arguments, value, n, oc, position)


def _tile(tile: BlockTile, arguments: Arguments) -> Any:
    """The stage `tile`; what it returns reads it by (block, groups' block, slice, chunk, taps, group, ic, part)."""
    from tvm import te, tirx

    spec, missing = tile.spec, 3 - tile.spec.rank
    variant, geometry, one = variants.primitive(spec), Geometry.of(spec), tirx.const(1.0, spec.dtype)

    def read(n: Any, ic: Any, position: Sequence[Any]) -> Any:
        return zero_padded(spec, geometry, arguments.read_x, n, ic, position)

    alone = operands(geometry, read, lambda *_: one, widen=lambda value: value)
    term = variant.term(spec, alone)  # which then is the element of x

    def gathered(outer: Sequence[Any], taps: Sequence[Any], gi: Any, ic: Any, part: Sequence[Any]) -> Any:
        block, g, slice_, chunk, *outer_taps = outer
        output = block * tile.positions + _joined(tile.position_split, part)
        n, position = unflattened(spec, output)
        channel = (slice_ * tile.chunks[0] + chunk) * tile.depth + ic
        tap = [o * size + t for o, size, t in zip(outer_taps, tile.taps, taps)]
        oc = variant.channel(spec, g * tile.groups + gi, 0)  # any channel of the group reads the same input
        value = term.at(n, oc, position, (channel, *tap[missing:]))
        inside = [output < tile.outputs] if tile.outputs % tile.positions else []
        inside += [channel < tile.run_in] if tile.slices * tile.chunks[0] * tile.depth > tile.run_in else []
        return or_zero(inside, value)

    outer = (ceil_div(tile.outputs, tile.positions), spec.groups // tile.groups, tile.slices, *tile.chunks)
    if spec.channels_last:
        shape = (*outer, *tile.position_split, *tile.taps, tile.groups, tile.depth)
        stage = te.compute(shape, lambda *i: gathered(i[:7], i[10:13], i[13], i[14], i[7:10]), name="tile")
        return lambda b, g, s, chunk, taps, gi, ic, part: stage(b, g, s, *chunk, *part, *taps, gi, ic)
    shape = (*outer, tile.groups, tile.depth, *tile.taps, *tile.position_split)
    stage = te.compute(shape, lambda *i: gathered(i[:7], i[9:12], i[7], i[8], i[12:]), name="tile")
    return lambda b, g, s, chunk, taps, gi, ic, part: stage(b, g, s, *chunk, gi, ic, *taps, *part)


def _summed(tile: BlockTile, arguments: Arguments, part: Any) -> Any:
    """The stages `total` and `y` over the slices of `part`."""
    from tvm import te

    spec, variant = tile.spec, variants.primitive(tile.spec)
    slice_ = te.reduce_axis((0, tile.slices), "slice")

    def of(index: Sequence[Any]) -> tuple[Place, Any]:
        n, channel, *position = (index[0], index[-1], *index[1:-1]) if spec.channels_last else index
        output = n
        for size, p in zip(spec.out_size, position):
            output = output * size + p
        group = variant.group(spec, channel) if spec.groups > 1 else 0
        within = channel if spec.groups == 1 else channel // spec.groups if variant.interleaved else channel % tile.run
        return Place(output, group, within), n

    def total(*index: Any) -> Any:
        place, _ = of(index)
        return te.sum(part(slice_, *_tile_index(tile, place)), axis=slice_)

    sums = te.compute(spec.out_shape, total, name="total")

    def at(*index: Any) -> Any:
        return _finished(tile, arguments, of(index)[0], sums(*index))

    return te.compute(spec.out_shape, at, name="y")


def _tile_index(tile: BlockTile, place: Place) -> tuple[Any, ...]:
    """The index of `acc`, without the slice: the inverse of `Place.of`."""
    rows = (place.output // tile.positions, *_parted(tile.position_split, place.output % tile.positions))
    group = (place.group // tile.groups, place.group % tile.groups)
    columns = (*group, place.within // tile.channels, *_parted(tile.channel_split, place.within % tile.channels))
    return (*rows, *columns) if tile.spec.channels_last else (*columns, *rows)


def _parted(split: Split, index: Any) -> tuple[Any, Any, Any]:
    _, threads, inner = split
    return index // (threads * inner), index // inner % threads, index % inner
