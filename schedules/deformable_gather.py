"""Deformable convolution as sampling tables, a gather and a register tile, all within a block of outputs.

    pad: x with its channels last, in a parallel region of its own    where the layout has them first
    parallel task = (n, block of outputs [, oc_outer]):               oc_order: parallel
        offsets[channel, output]: the task's, outputs side by side
        for offset group, kh, kw, output:                             vectors of outputs
            index[q], weights[q] for its neighbours q, outside        `variants.deformable`
        for output, kh, kw, ic:                                       vectors of channels
            col[output, kh, kw, ic] = mask * (outside ? 0 : sum over q of pad[index[q], ic] * weights[q])
        for [oc_outer,] tiles of outputs [, oc_outer]:                oc_order: outer, inner
            acc[output, oc_vector, lane] = 0                          in registers
            for kh, kw, ic:
                acc[...] += col[output, kh, kw, ic] * weight[oc_outer, kh, kw, ic, oc_vector, lane]
            y[...] = activation(acc + bias + residual)

The outputs of an image are one row, cut into tiles and blocks wherever its lines end; the last output is sampled in
place of those beyond it. Of `col`, which is kh * kw times as large as x, there is only what a block needs, within L2.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    BARRIER_CYCLES,
    LOADS_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    overlapped,
    step_cycles,
    stream_cycles,
    transpose_cycles,
)
from convtune.schedules.tiling import (
    Tile,
    ceil_div,
    even_blocks,
    pack_blocks,
    packed_blocks,
    place_accumulators,
    place_pad,
    place_store,
    round_up,
    spaced,
    split_channels,
    suits_registers,
    tiled_sums,
)

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, epilogue, operands, padded_input
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget
from convtune.variants.deformable import CORNERS, Deformable, Sampling, interpolated

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # tiles of a task, of which a domain has some
TABLE_CYCLES = 90.0  # of a vector of sampled points
MOVE_CYCLES = 3.0  # of a sampled point's offsets, copied one by one


class DeformableGather(Estimating[CpuTarget]):
    name = "deformable_gather"
    summary = "sampling tables and gather of a block of outputs, then a register tile over what was gathered"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, CpuTarget) and spec.variant == "deformable"

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        most = min(count(spec.out_size), _outputs_in_l2(spec, target))
        run = spec.out_channels // spec.groups
        return {
            "tile": _columns(count(spec.out_size), self._most_columns(spec, target)),
            "oc_vectors": tuple(range(1, min(4, ceil_div(run, target.lanes)) + 1)),
            "block": spaced((tiles for tiles in BLOCKS if tiles <= most), 8),
            "oc_order": ("parallel", "outer", "inner"),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        columns, vectors, block = int(knobs["tile"]), int(knobs["oc_vectors"]), int(knobs["block"])
        widest = _columns(count(spec.out_size), self._most_columns(spec, target))[-1]
        if not suits_registers(target, columns, vectors, widest):
            return False
        fits = columns * block <= _outputs_in_l2(spec, target)
        return fits and block <= ceil_div(count(spec.out_size), columns)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, block, order = self._tile(spec, target, knobs), int(knobs["block"]), knobs["oc_order"]
        depth = spec.in_channels // spec.groups * count(spec.kernel)
        block_bytes, blocks = depth * tile.block * 4, tile.groups * tile.blocks
        compute = depth * step_cycles(tile.columns * tile.vectors, tile.columns + tile.vectors)
        compute += 2 * tile.columns * tile.vectors + TILE_CYCLES
        col_bytes = tile.columns * depth * 4
        again = stream_cycles(target, block_bytes, block_bytes * blocks if order == "inner" else block_bytes)
        again += stream_cycles(target, col_bytes, col_bytes * (1 if order == "inner" else block))
        first = stream_cycles(target, block_bytes, block_bytes * blocks)
        per_block = overlapped(block * compute, first + (block - 1) * again)
        gathered = block * tile.columns * self._gather_cycles(spec, target, order == "parallel")
        tasks = spec.batch * ceil_div(ceil_div(count(spec.out_size), tile.columns), block)
        if order == "parallel":
            total = Tasks(tasks * blocks, gathered + per_block).on(target)
        else:
            total = Tasks(tasks, gathered + per_block * blocks).on(target)
        if not spec.channels_last:
            total += BARRIER_CYCLES + transpose_cycles(spec, count(spec.in_shape)) / 2 / target.threads
        return total + transpose_cycles(spec, count(spec.out_shape)) / target.threads

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (pack_blocks(spec, self._tile(spec, target, knobs)),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile, order = self._tile(spec, target, knobs), knobs["oc_order"]
        sch = Schedule(_expression(spec, tile, int(knobs["block"])))
        (n, block, inner), channels, store = _split(sch, spec, tile, int(knobs["block"]))
        loops = [n, block, inner, channels] if order == "inner" else [n, block, channels, inner]
        sch.reorder(*loops, *store)
        task = sch.fuse(*loops[: 3 if order == "parallel" else 2])
        sch.parallel(task)
        place_store(sch, spec, tile, loops[-1], store)
        place_accumulators(sch, loops[-1], reductions=3, order=(0, 1, 2), unrolled=0)
        _place_gather(sch, spec, target, task)
        if not spec.channels_last:
            place_pad(sch, spec, target, None)
        _merge(sch, spec, tile)
        return sch.mod

    def _most_columns(self, spec: ConvSpec, target: CpuTarget) -> int:
        return min(target.vector_registers - 2, _outputs_in_l2(spec, target))

    def _gather_cycles(self, spec: ConvSpec, target: CpuTarget, one_block: bool) -> float:
        """Of an output; in a task of one channel block only what its group reads."""
        assert spec.offset_groups is not None
        taps, channels = count(spec.kernel), spec.in_channels // (spec.groups if one_block else 1)
        vectors = ceil_div(min(channels, spec.in_channels // spec.offset_groups), target.lanes)
        groups = ceil_div(channels * spec.offset_groups, spec.in_channels)
        loads = groups * vectors * (len(CORNERS) / LOADS_PER_CYCLE + 1)
        return taps * (loads + spec.offset_groups * (TABLE_CYCLES / target.lanes + MOVE_CYCLES))

    def _tile(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Tile:
        run = spec.out_channels // spec.groups
        return Tile(1, int(knobs["tile"]), int(knobs["oc_vectors"]), target.lanes, target.lanes, spec.groups, run)


_columns = functools.lru_cache(maxsize=64)(even_blocks)  # which looks at every number of blocks that there could be


def _outputs_in_l2(spec: ConvSpec, target: CpuTarget) -> int:
    """As many outputs as have what they gather in half of L2; at least one."""
    return max(1, target.l2_bytes // 2 // (count(spec.kernel) * spec.in_channels * 4))


def _expression(spec: ConvSpec, tile: Tile, block: int) -> Any:
    from tvm import te

    depth, tiles = spec.in_channels // spec.groups, ceil_div(count(spec.out_size), tile.columns)
    arguments = Arguments(spec, [packed_blocks(spec, tile)])
    col, weight = _gathered(arguments, round_up(tiles, block) * tile.columns), arguments.weights[0]
    kernel = [te.reduce_axis((0, extent), name) for name, extent in zip(("kh", "kw"), spec.kernel)]
    ic = te.reduce_axis((0, depth), "ic")

    def summand(n: Any, at: Any, g: Any, co: Any, _row: Any, column: Any, cv: Any, lane: Any) -> Any:
        sampled = col(n, at * tile.columns + column, *kernel, g * depth + ic)
        return te.sum(sampled * weight(g, co, 0, *kernel, ic, cv * tile.lanes + lane), axis=[*kernel, ic])

    return arguments.primfunc(_output(arguments, tile, tiled_sums(spec, tile, (spec.batch, tiles), summand)))


def _gathered(arguments: Arguments, outputs: int) -> Any:
    """The stage `col`: (n, output, kh, kw, ic), and those that it reads, for that many outputs of an image."""
    from tvm import te

    spec, variant = arguments.spec, _variant(arguments.spec)
    given = operands(Geometry.of(spec), _rows(arguments), None, arguments)
    index, weights, outside = _tables(arguments, outputs)
    width = spec.in_size[1]

    def sample(n: Any, output: Any, kh: Any, kw: Any, ic: Any) -> Any:
        group = variant.offset_group(spec, ic)
        of = [[table(n, group, kh, kw, q, output) for q in range(len(CORNERS))] for table in (index, weights)]
        places = [(at // width, at % width) for at in of[0]]
        beyond = outside(n, group, kh, kw, 0, output) != 0
        value = interpolated(lambda q: given.x(n, ic, *places[q]), of[1], beyond)
        if given.mask is None:
            return value
        return given.mask(n, variant.tap_channel(spec, group, (kh, kw)), *_position(spec, output)) * value

    return te.compute((spec.batch, outputs, *spec.kernel, spec.in_channels), sample, name="col")


def _rows(arguments: Arguments) -> Callable[..., Any]:
    """How to read x so that channels are side by side."""
    if arguments.spec.channels_last:
        return arguments.read_x
    pad = padded_input(arguments, Geometry.of(arguments.spec))
    return lambda n, ic, position: pad(n, *position, ic)


def _tables(arguments: Arguments, outputs: int) -> list[Any]:
    """The stages `index`, of neighbours in an image, `weights` and `outside`: each (n, group, kh, kw, q, output)."""
    from tvm import te, tirx

    spec, variant, width = arguments.spec, _variant(arguments.spec), arguments.spec.in_size[1]
    given = operands(Geometry.of(spec), arguments.read_x, None, arguments)
    assert given.offset is not None and spec.offset_groups is not None
    read = given.offset
    channels = variant.inputs(spec)["offset"]
    offsets = te.compute(
        (spec.batch, channels, outputs), lambda n, c, output: read(n, c, *_position(spec, output)), name="offsets"
    )

    def table(name: str, entries: int, entry: Callable[[Sampling], Sequence[Any]]) -> Any:
        def at(n: Any, group: Any, kh: Any, kw: Any, q: Any, output: Any) -> Any:
            here = dataclasses.replace(given, offset=lambda n, channel, *_: offsets(n, channel, output))
            sampling = variant.sampling(spec, here, n, group, _position(spec, output), (kh, kw))
            *values, value = entry(sampling)
            for i, other in enumerate(values):
                value = tirx.Select(q == i, other, value)
            return value

        return te.compute((spec.batch, spec.offset_groups, *spec.kernel, entries, outputs), at, name=name)

    return [
        table("index", len(CORNERS), lambda sampling: [y * width + x for y, x in sampling.corners]),
        table("weights", len(CORNERS), lambda sampling: sampling.weights),
        table("outside", 1, lambda sampling: [tirx.Cast("int32", sampling.outside)]),
    ]


def _variant(spec: ConvSpec) -> Deformable:
    variant = variants.primitive(spec)
    assert isinstance(variant, Deformable)
    return variant


def _position(spec: ConvSpec, output: Any) -> tuple[Any, Any]:
    """Where an output, or the last one in place of those beyond it, is."""
    from tvm import tirx

    existing = tirx.min(output, count(spec.out_size) - 1)
    return existing // spec.out_size[1], existing % spec.out_size[1]


def _output(arguments: Arguments, tile: Tile, sums: Any) -> Any:
    """The stage `y`, all outputs of an image in one dimension, channels as `expression.output` has them."""
    from tvm import te

    spec, outputs, width = arguments.spec, count(arguments.spec.out_size), arguments.spec.out_size[1]
    channels = (tile.run,) if tile.groups == 1 else (tile.groups, tile.run)
    shape = (outputs, *channels) if spec.channels_last else (*channels, outputs)

    def at(n: Any, *index: Any) -> Any:
        output, channel = (index[0], index[1:]) if spec.channels_last else (index[-1], index[:-1])
        group, within = cube(channel, 0)[1:]
        block, vector, lane = tile.locate(within)
        value = sums(n, output // tile.columns, group, block, 0, output % tile.columns, vector, lane)
        return epilogue(arguments, value, n, group * tile.run + within, (output // width, output % width))

    return te.compute((spec.batch, *shape), at, name="y")


def _split(sch: Any, spec: ConvSpec, tile: Tile, tiles: int) -> tuple[list[Any], Any, list[Any]]:
    """Splits `y` into n, blocks of that many tiles and tiles; channel blocks; and what a tile stores."""
    n, *rest = sch.get_loops(sch.get_sblock("y"))
    outputs, channels = (rest[0], rest[1:]) if spec.channels_last else (rest[-1], rest[:-1])
    oc_outer, vector, lane = split_channels(sch, channels, tile)
    all_tiles, column = sch.split(outputs, [None, tile.columns])
    block, inner = sch.split(all_tiles, [None, tiles])
    return [n, block, inner], oc_outer, [column, vector, lane]


def _place_gather(sch: Any, spec: ConvSpec, target: CpuTarget, task: Any) -> None:
    """Computes `col` and what it reads in a task."""
    col = sch.get_sblock("col")
    sch.compute_at(col, task, preserve_unit_loops=True)
    channels = sch.get_loops(col)[-1]
    assert spec.offset_groups is not None
    run = gcd(spec.in_channels // spec.offset_groups, int(sch.get(channels).extent))  # of one offset group
    _, channels = sch.split(channels, [None, run])
    if run % target.lanes == 0:  # else LLVM finds vectors for what there is
        sch.vectorize(sch.split(channels, [None, target.lanes])[1])
    for name in ("index", "weights", "outside"):
        table = sch.get_sblock(name)
        sch.compute_at(table, task, preserve_unit_loops=True)
        q, output = sch.get_loops(table)[-2:]
        sch.reorder(output, q)
        sch.unroll(q)
    offsets = sch.get_sblock("offsets")
    sch.compute_at(offsets, task, preserve_unit_loops=True)
    if spec.channels_last:
        channel, output = sch.get_loops(offsets)[-2:]
        sch.reorder(output, channel)


def _merge(sch: Any, spec: ConvSpec, tile: Tile) -> None:
    """Gives `y` the spec's shape, once nothing needs to see its outputs in one dimension any more."""
    width = spec.out_size[1]

    def merged(n: Any, *index: Any) -> list[Any]:
        output, channel = (index[0], index[1:]) if spec.channels_last else (index[-1], index[:-1])
        oc = channel[0] if len(channel) == 1 else channel[0] * tile.run + channel[1]
        position = [output // width, output % width]
        return [n, *position, oc] if spec.channels_last else [n, oc, *position]

    sch.transform_layout("y", ("write", 0), merged)


deformable_gather = DeformableGather()
