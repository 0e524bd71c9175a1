"""What `deformable_gather` samples: a table of places and weights, and the stage `col` that gathers by it.

An entry of the table is a tap of an output. Entries lie as offsets and masks do: channels last, the taps of an output
side by side, so that whole vectors are copied out of the inputs, and a period of vectors later each lane has the same
tap again, which LLVM then knows; channels first, the outputs of a tap side by side.

    offsets[axis, entry], masks[entry]: copies, with zeros after the last output    of a tile if channels are last,
    for vector of entries:                          channels last: a period of them written out      else of a task
        table[first, entry]: where in an image of x the upper left neighbour's first channel is
        table[at_border, entry]: which neighbours fall together at the border of x, and whether the point is outside
        table[weights + q, entry]: of neighbour q
    for tile, column, offset group, kh, kw, chunk:  channels first, the offset group outermost
        prefetch x where the next column has the same tap                  x larger than L2
        if not at_border: neighbours are a column and a row apart, at constant distances
            col[tile, kh, kw, chunk, column, lane]
                = mask * sum over q of x[first + distance[q] + chunk, lane] * weights[q]
        else: distances are by the bits of at_border, and so is whether the sum counts

The gather waits for loads, so few words matter: six and the mask instead of nine and the mask, of which two address x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.statements import fetched
from convtune.schedules.tiling import LINE_BYTES, Tile, ceil_div

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, or_zero, padded_input, widened
from convtune.spec import DTYPES, count
from convtune.variants import Operands
from convtune.variants.deformable import CORNERS, Deformable

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

FIRST, AT_BORDER, WEIGHTS = 0, 1, 2  # the words of an entry; each neighbour has a weight
WORDS = WEIGHTS + len(CORNERS)
ONE_COLUMN, ONE_ROW, OUTSIDE = 1, 2, 4  # the bits of AT_BORDER
LONGEST_PERIOD = 16  # vectors of a table that are written out: LLVM needs a second for nine of them


@dataclasses.dataclass(frozen=True)
class Entries:
    """How the taps of so many outputs lie in the tables. taps: of an output, as the channels of `mask` number them."""

    spec: ConvSpec
    outputs: int

    @property
    def taps(self) -> int:
        assert self.spec.offset_groups is not None
        return self.spec.offset_groups * count(self.spec.kernel)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.outputs * self.taps,) if self.spec.channels_last else (self.taps, self.outputs)

    def place(self, output: Any, tap: Any) -> tuple[Any, ...]:
        return (output * self.taps + tap,) if self.spec.channels_last else (tap, output)

    def at(self, *place: Any) -> tuple[Any, Any]:
        """The output and the tap of an entry."""
        if not self.spec.channels_last:
            return place[1], place[0]
        return place[0] // self.taps, place[0] % self.taps

    def staged(self, output: Any, tap: Any) -> tuple[Any, Any]:
        """Where the copies of offsets and masks have a tap of an output."""
        return (output, tap) if self.spec.channels_last else (tap, output)

    def period(self, lanes: int) -> int:
        """After how many vectors the lanes have the same taps."""
        return self.taps // gcd(self.taps, lanes) if self.spec.channels_last else 1


def run(spec: ConvSpec) -> int:
    """Channels side by side that are of one group and of one offset group."""
    assert spec.offset_groups is not None
    return gcd(spec.in_channels // spec.groups, spec.in_channels // spec.offset_groups)


def chunk(spec: ConvSpec, lanes: int) -> int:
    """Channels of a run that `col` has side by side: a vector, or where the run has no such part all of it."""
    widest = max(size for size in range(1, lanes + 1) if run(spec) % size == 0)
    return widest if widest > lanes // 4 else run(spec)


def fetches_ahead(spec: ConvSpec, target: CpuTarget) -> bool:
    """Whether samples are prefetched: L2 answers in time without, and a prefetch takes an instruction for each line."""
    return count(spec.in_shape[1:]) * 4 > target.l2_bytes


def position(spec: ConvSpec, output: Any) -> tuple[Any, Any]:
    """Where an output is; one beyond the last is below the image."""
    return output // spec.out_size[1], output % spec.out_size[1]


def gathered(arguments: Arguments, tile: Tile, tiles: int) -> Any:
    """The stage `col`: (n, tile, kh, kw, chunk, column, channel), and those that it reads, for that many tiles."""
    from tvm import te, tirx

    spec, wide = arguments.spec, chunk(arguments.spec, tile.width)
    x = operands(Geometry.of(spec), _rows(arguments), None).x
    entries = Entries(spec, tiles * tile.columns + tile.width)  # the last vectors may pass the last output
    staged = {name: _staged(arguments, name, entries) for name in arguments.inputs}
    table = _table(arguments, staged["offset"], entries)

    def sample(n: Any, at: Any, kh: Any, kw: Any, part: Any, column: Any, lane: Any) -> Any:
        output, tap = at * tile.columns + column, _tap(spec, part * wide, kh, kw)
        entry = entries.place(output, tap)
        at_border = table(n, AT_BORDER, *entry)
        top, left, channel = _located(spec, table(n, FIRST, *entry))

        def interpolation(down: Any, right: Any) -> Any:
            """With the lower neighbours so many rows and the right ones so many columns further."""

            def neighbour(dy: Any, dx: Any) -> Any:
                return x(n, channel + _within(spec, part * wide) + lane, top + dy, left + dx)

            return interpolated(
                neighbour, lambda q: tirx.reinterpret("float32", table(n, WEIGHTS + q, *entry)), down, right
            )

        rare = at_border_value(interpolation, at_border)
        value = tirx.if_then_else(at_border == 0, interpolation(1, 1), rare)
        if not spec.modulated:
            return value
        return staged["mask"](n, 0, *entries.staged(output, tap)) * value

    shape = (spec.batch, tiles, *spec.kernel, spec.in_channels // wide, tile.columns, wide)
    return te.compute(shape, sample, name="col")


def interpolated(neighbour: Callable[..., Any], weight: Callable[[int], Any], down: Any, right: Any) -> Any:
    """The sum of neighbour(rows, columns from the first one) * weight(which one), the lower ones so many rows and the
    right ones so many columns further."""
    total: Any = 0
    for q, (dy, dx) in enumerate(CORNERS):
        product = neighbour(down * dy, right * dx) * weight(q)
        total = total + product if q else product
    return total


def at_border_value(interpolation: Callable[[Any, Any], Any], at_border: Any) -> Any:
    """A sample, given interpolation(down, right) and the word that says which neighbours fall together."""
    from tvm import tirx

    def bit(one: int) -> Any:
        return at_border // one % 2

    # a Select would compare, and move the result to a mask register, for each sample
    bits = tirx.reinterpret("int32", interpolation(1 - bit(ONE_ROW), 1 - bit(ONE_COLUMN))) & (bit(OUTSIDE) - 1)
    return tirx.reinterpret("float32", bits)


def _tap(spec: ConvSpec, ic: Any, kh: Any, kw: Any) -> Any:
    """The tap that has an input channel at a place of the kernel."""
    variant = _variant(spec)
    return variant.tap_channel(spec, variant.offset_group(spec, ic), (kh, kw))


def _within(spec: ConvSpec, ic: Any) -> Any:
    """The place of an input channel in its offset group."""
    assert spec.offset_groups is not None
    return ic if spec.offset_groups == 1 else ic % (spec.in_channels // spec.offset_groups)


def _located(spec: ConvSpec, element: Any) -> tuple[Any, Any, Any]:
    """(y, x, channel) of an element of an image whose channels are last."""
    width, channels = spec.in_size[1], spec.in_channels
    return element // (width * channels), element // channels % width, element % channels


def _rows(arguments: Arguments) -> Callable[..., Any]:
    """How to read x so that channels are side by side."""
    if arguments.spec.channels_last:
        return arguments.read_x
    pad = padded_input(arguments, Geometry.of(arguments.spec))
    return lambda n, ic, position: pad(n, *position, ic)


def _staged(arguments: Arguments, name: str, entries: Entries) -> Any:
    """The stage `offsets` or `masks`: (n, axis, output, tap) of that input, with zeros after the last output; channels
    first, (n, axis, tap, output)."""
    from tvm import te

    spec, axes = arguments.spec, 2 if name == "offset" else 1
    shape = entries.staged(entries.outputs, entries.taps)

    def at(n: Any, axis: Any, *place: Any) -> Any:
        output, tap = entries.staged(*place)
        given = arguments.read_input(name, n, tap * axes + axis, cube(position(spec, output), 0))
        return or_zero([output < count(spec.out_size)], widened(given))

    return te.compute((spec.batch, axes, *shape), at, name=f"{name}s")


def _table(arguments: Arguments, offsets: Any, entries: Entries) -> Any:
    """The stage `table`, (n, word, entry), all words as int32.

    The neighbours of a point outside of x, or at its border, fall together: all are within x, whatever their weights.
    """
    from tvm import te, tirx

    spec = arguments.spec

    def at(n: Any, word: Any, *entry: Any) -> Any:
        output, tap = entries.at(*entry)
        words = entry_words(
            spec, lambda axis: offsets(n, axis, *entries.staged(output, tap)), position(spec, output), tap
        )
        value = words.pop()
        for i, other in enumerate(words):
            value = tirx.Select(word == i, other, value)
        return value

    return te.compute((spec.batch, WORDS, *entries.shape), at, name="table")


def entry_words(spec: ConvSpec, offset: Callable[[Any], Any], place: tuple[Any, Any], tap: Any) -> list[Any]:
    """The words of a tap, numbered as the channels of `mask` are, of the output at a place. offset: by its axis."""
    from tvm import tirx

    variant, width = _variant(spec), spec.in_size[1]
    assert spec.offset_groups is not None
    of_group = spec.in_channels // spec.offset_groups
    given = Operands(_nothing, _nothing, offset=lambda n, channel, *_: offset(channel % 2))
    taps = (tap // spec.kernel[1] % spec.kernel[0], tap % spec.kernel[1])
    sampling = variant.sampling(spec, given, 0, 0, place, taps)
    (top, left), (bottom, right) = sampling.corners[0], sampling.corners[-1]
    first = (top * width + left) * spec.in_channels + tap // count(spec.kernel) * of_group
    bits = ((right == left, ONE_COLUMN), (bottom == top, ONE_ROW), (sampling.outside, OUTSIDE))
    at_border = sum(tirx.Select(condition, bit, 0) for condition, bit in bits)
    return [first, at_border, *(tirx.reinterpret("int32", weight) for weight in sampling.weights)]


def _nothing(*_index: Any) -> Any:
    raise AssertionError("a sampled place is neither of x nor of weights")


def _variant(spec: ConvSpec) -> Deformable:
    variant = variants.primitive(spec)
    assert isinstance(variant, Deformable)
    return variant


def place_gather(sch: Any, spec: ConvSpec, target: CpuTarget, task: Any, at: Any) -> None:
    """Computes `col` at a loop within a task, and what it reads in the task."""
    col, wide = sch.get_sblock("col"), chunk(spec, target.lanes)
    sch.compute_at(col, at, preserve_unit_loops=True)
    kh, kw, part, column, lane = sch.get_loops(col)[-5:]
    group, part = sch.split(part, [None, gcd(run(spec) // wide, int(sch.get(part).extent))])  # of one offset group
    order = [column, group] if spec.channels_last else [group, column]
    sch.reorder(*order, kh, kw, part, lane)  # what the taps of an output sample lies close together
    if wide <= target.lanes:  # else LLVM finds vectors for what there is
        sch.vectorize(lane)
    # of a tile they fit into L1, and leave L2 to x and `col`
    tables = sch.get_loops(col)[-7] if spec.channels_last and at is task else task
    _place_table(sch, spec, target, tables)
    for name in variants.primitive(spec).inputs(spec):
        stage = sch.get_sblock(f"{name}s")
        sch.compute_at(stage, tables, preserve_unit_loops=True)
        if spec.channels_last:
            axis, output, tap = sch.get_loops(stage)[-3:]
            sch.reorder(output, tap, axis)
            sch.unroll(axis)


def _place_table(sch: Any, spec: ConvSpec, target: CpuTarget, at: Any) -> None:
    """Computes the table at a loop, words innermost, so that they share what they are computed from."""
    from tvm import tirx

    table, period = sch.get_sblock("table"), Entries(spec, 1).period(target.lanes)
    sch.compute_at(table, at, preserve_unit_loops=True)
    *outer, entry = sch.get_loops(table)
    # varies where groups and offset groups overlap, and a task has one block of channels
    extent = sch.get(entry).extent
    if spec.channels_last and isinstance(extent, tirx.IntImm) and int(extent) <= LONGEST_PERIOD * target.lanes:
        period = ceil_div(int(extent), target.lanes)  # all that there are
    # there is room for whole periods
    periods, vector, lane = sch.split(entry, [None, period, target.lanes], disable_predication=True)
    word = outer[-1] if spec.channels_last else outer[-2]
    sch.reorder(*outer[outer.index(word) + 1 :], periods, vector, word, lane)
    sch.unroll(word)
    if period <= LONGEST_PERIOD:
        sch.unroll(vector)
    sch.vectorize(lane)


def fetching_ahead(module: Any, spec: ConvSpec, tile: Tile) -> Any:
    """The module with prefetches of what the next column of the tile samples, before each vector that is gathered, and
    of the next tile's offsets and masks.

    Where samples lie, only the tables say, and the instructions between two waits are too few for a core to look far
    ahead by itself: of 8 channels each, with x in L3, 5.6 ns a sample became 3.6.
    """
    from tvm import ir, s_tir, tirx
    from tvm_ffi import structural_map

    entries, wide = Entries(spec, 1), chunk(spec, tile.width)

    def samples(block: Any) -> list[Any]:
        n, at, kh, kw, part, column, _lane = block.iter_values
        source = {region.source.name: region.source for region in block.block.reads}
        following = at * tile.columns + tirx.min(column + 1, tile.columns - 1)
        entry = entries.place(following, _tap(spec, part * wide, kh, kw))
        y, x, first = _located(spec, tirx.BufferLoad(source["table"], [n, FIRST, *entry]))
        elements = []
        for down, right in CORNERS:
            row = [n, y + down] if spec.channels_last else [n, 0, y + down]
            place = [*row, x + right, first + _within(spec, part * wide)]
            elements.append(tirx.BufferLoad(source["x" if spec.channels_last else "pad"], place))
        return [fetched(element) for element in elements]

    def inputs(block: Any) -> list[Any]:
        (source,) = (region.source for region in block.block.reads)
        n, _axis, output, _tap = block.iter_values
        place = position(spec, tirx.min(output + tile.columns, count(spec.out_size) - 1))
        lines = range(0, int(source.shape[-1]), LINE_BYTES // DTYPES[spec.dtype])
        return [fetched(tirx.BufferLoad(source, [n, *place, first]), first_cache=False) for first in lines]

    def ahead(loop: Any) -> Any:
        block = loop.body
        if isinstance(block, s_tir.SBlockRealize) and block.block.name_hint == "col":
            return tirx.SeqStmt([*samples(block), loop])
        while isinstance(block, tirx.For):
            block = block.body
        names = ("offsets", "masks") if spec.channels_last else ()
        if not isinstance(block, s_tir.SBlockRealize) or block.block.name_hint not in names:
            return loop
        if not isinstance(loop.body, tirx.For) or not loop.body.loop_var.same_as(block.iter_values[-1]):
            return loop  # not that of outputs, whose body is that of taps
        body = tirx.SeqStmt([*inputs(block), loop.body])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body)

    main = module["main"]
    return ir.IRModule({"main": main.with_body(structural_map(main.body, (tirx.For, ahead)))})
