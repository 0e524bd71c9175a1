"""What `deformable_gather` samples: tables of places and weights, and the stage `col` that gathers by them.

An entry of the tables is a tap of an output. Entries lie as offsets and masks do: channels last, the taps of an output
side by side, so that whole vectors are copied out of the inputs, and a period of vectors later each lane has the same
tap again, which LLVM then knows; channels first, the outputs of a tap side by side.

    offsets[axis, entry], masks[entry]: copies, with zeros after the last output
    for vector of entries:                          channels last: a period of them written out
        index[q, entry]: where in an image of x a neighbour q begins
        weights[q, entry]; inside[entry]: all bits set, or none
    for tile, column, offset group, kh, kw, chunk:  channels first, the offset group outermost
        prefetch x where the next column has the same tap                  x larger than L2
        col[tile, kh, kw, chunk, column, lane] = mask * (inside & sum over q of x[index[q] + chunk, lane] * weights[q])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.statements import fetched
from convtune.schedules.tiling import Tile, ceil_div

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, or_zero, padded_input, widened
from convtune.spec import count
from convtune.variants.deformable import CORNERS, Deformable, Sampling

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

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
    index, weights, inside = _tables(arguments, staged["offset"], entries)

    def sample(n: Any, at: Any, kh: Any, kw: Any, part: Any, column: Any, lane: Any) -> Any:
        entry = entries.place(at * tile.columns + column, _tap(spec, part * wide, kh, kw))
        total: Any = 0
        for q in range(len(CORNERS)):
            *place, first = _located(spec, index(n, q, *entry))
            neighbour = x(n, first + part * wide + lane, *place) * weights(n, q, *entry)
            total = total + neighbour if q else neighbour
        # a Select would compare, and move the result to a mask register, for each sample
        value = tirx.reinterpret("float32", tirx.reinterpret("int32", total) & inside(n, *entry))
        return staged["mask"](n, 0, *entry) * value if spec.modulated else value

    shape = (spec.batch, tiles, *spec.kernel, spec.in_channels // wide, tile.columns, wide)
    return te.compute(shape, sample, name="col")


def _tap(spec: ConvSpec, ic: Any, kh: Any, kw: Any) -> Any:
    """The tap that has an input channel at a place of the kernel."""
    variant = _variant(spec)
    return variant.tap_channel(spec, variant.offset_group(spec, ic), (kh, kw))


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
    """The stage `offsets` or `masks`: (n, axis, entry) of that input, with zeros after the last output."""
    from tvm import te

    spec, axes = arguments.spec, 2 if name == "offset" else 1

    def at(n: Any, axis: Any, *entry: Any) -> Any:
        output, tap = entries.at(*entry)
        given = arguments.read_input(name, n, tap * axes + axis, cube(position(spec, output), 0))
        return or_zero([output < count(spec.out_size)], widened(given))

    return te.compute((spec.batch, axes, *entries.shape), at, name=f"{name}s")


def _tables(arguments: Arguments, offsets: Any, entries: Entries) -> list[Any]:
    """The stages `index`, the element of an image where a neighbour begins, and `weights`: (n, q, entry); `inside`, all
    bits set where a point does not count as zero: (n, entry)."""
    from tvm import te, tirx

    spec, variant, width = arguments.spec, _variant(arguments.spec), arguments.spec.in_size[1]
    given = operands(Geometry.of(spec), arguments.read_x, None, arguments)

    def sampling(n: Any, *entry: Any) -> Sampling:
        output, tap = entries.at(*entry)
        here = dataclasses.replace(given, offset=lambda n, channel, *_: offsets(n, channel % 2, *entry))
        taps = (tap // spec.kernel[1] % spec.kernel[0], tap % spec.kernel[1])
        return variant.sampling(spec, here, n, 0, position(spec, output), taps)

    def table(name: str, values: Callable[[Sampling], Sequence[Any]]) -> Any:
        def at(n: Any, q: Any, *entry: Any) -> Any:
            *others, value = values(sampling(n, *entry))
            for i, other in enumerate(others):
                value = tirx.Select(q == i, other, value)
            return value

        return te.compute((spec.batch, len(CORNERS), *entries.shape), at, name=name)

    def inside(n: Any, *entry: Any) -> Any:
        none, all_set = (tirx.const(bits, "int32") for bits in (0, -1))
        return tirx.Select(sampling(n, *entry).outside, none, all_set)

    return [
        table("index", lambda sampling: [(y * width + x) * spec.in_channels for y, x in sampling.corners]),
        table("weights", lambda sampling: sampling.weights),
        te.compute((spec.batch, *entries.shape), inside, name="inside"),
    ]


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
    for name in ("index", "weights", "inside"):
        _place_table(sch, spec, target, task, name)
    for name in variants.primitive(spec).inputs(spec):
        stage = sch.get_sblock(f"{name}s")
        sch.compute_at(stage, task, preserve_unit_loops=True)
        if spec.channels_last:
            axis, entry = sch.get_loops(stage)[-2:]
            output, tap = sch.split(entry, [None, Entries(spec, 1).taps])
            sch.reorder(output, tap, axis)
            sch.unroll(axis)


def _place_table(sch: Any, spec: ConvSpec, target: CpuTarget, task: Any, name: str) -> None:
    """Computes a table in the task, neighbours innermost, so that they share what they are computed from."""
    from tvm import tirx

    table, period = sch.get_sblock(name), Entries(spec, 1).period(target.lanes)
    sch.compute_at(table, task, preserve_unit_loops=True)
    *outer, entry = sch.get_loops(table)
    extent = sch.get(
        entry
    ).extent  # varies where groups and offset groups overlap, and a task has one block of channels
    if spec.channels_last and isinstance(extent, tirx.IntImm) and int(extent) <= LONGEST_PERIOD * target.lanes:
        period = ceil_div(int(extent), target.lanes)  # all that there are
    # there is room for whole periods
    periods, vector, lane = sch.split(entry, [None, period, target.lanes], disable_predication=True)
    if name != "inside":
        q = outer[-1] if spec.channels_last else outer[-2]
        sch.reorder(*outer[outer.index(q) + 1 :], periods, vector, q, lane)
        sch.unroll(q)
    if period <= LONGEST_PERIOD:
        sch.unroll(vector)
    sch.vectorize(lane)


def fetching_ahead(module: Any, spec: ConvSpec, tile: Tile) -> Any:
    """The module with prefetches of what the next column of the tile samples, before each vector that is gathered.

    Where samples lie, only the tables say, and the instructions between two waits are too few for a core to look far
    ahead by itself: of 8 channels each, with x in L3, 5.6 ns a sample became 3.6.
    """
    from tvm import ir, s_tir, tirx
    from tvm_ffi import structural_map

    entries, wide = Entries(spec, 1), chunk(spec, tile.width)

    def ahead(loop: Any) -> Any:
        realize = loop.body
        if not isinstance(realize, s_tir.SBlockRealize) or realize.block.name_hint != "col":
            return loop
        n, at, kh, kw, part, column, _lane = realize.iter_values
        source = {region.source.name: region.source for region in realize.block.reads}
        following = at * tile.columns + tirx.min(column + 1, tile.columns - 1)
        entry = entries.place(following, _tap(spec, part * wide, kh, kw))
        fetches = []
        for q in range(len(CORNERS)):
            y, x, first = _located(spec, tirx.BufferLoad(source["index"], [n, q, *entry]))
            row = [n, y] if spec.channels_last else [n, 0, y]
            element = tirx.BufferLoad(source["x" if spec.channels_last else "pad"], [*row, x, first + part * wide])
            fetches.append(fetched(element))
        return tirx.SeqStmt([*fetches, loop])

    main = module["main"]
    return ir.IRModule({"main": main.with_body(structural_map(main.body, (tirx.For, ahead)))})
