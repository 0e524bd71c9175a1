"""Composite variants in one pass for channels-first layouts: lanes are columns of a row, and nothing is transposed.

    parallel task = (n, od_outer, oh_outer, ow_outer):
        pad[ic, d, row, residue, column] = x, zeros around                   where it is not all inside
        for each stage but the last:
            for oc_outer and tiles of rows and columns:                      oc_order: outer, inner
                acc[channel, row, vector, lane] = 0                          in registers
                for ic, kd, kw, kh:
                    acc[...] += input[ic, row * stride + kh, vector * lanes + lane + kw] * weight[..., channel]
                mid[...] = activation(acc + bias), zero where the next stage pads
        the last stage the same way, into y, with the epilogue

`mid` is a block's part of a stage's result, (channel, d, h, vector, lane), in cache. A step of a dense stage reads the
vectors of a row and broadcasts the weights of oc_tile channels; a depthwise one has one channel, and rows of a tile
share what they read. A depthwise first stage pads one channel at a time. Rows of `y` are stored as in `row_lanes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convtune.schedules.chain_plan import Dims, Region, Stage, is_chain, is_inner, ordered, plan
from convtune.schedules.estimate import Tasks
from convtune.schedules.row_tiling import (
    LARGEST_BODY,
    ROW_CYCLES,
    RowTile,
    copy_cycles,
    is_staged,
    lanes_along,
    most_sums,
    pack_channels,
    packed_shape,
    place_padded_rows,
    place_rows,
    row_values,
    split_rows,
    tile_cycles,
)
from convtune.schedules.tile_loops import place_accumulators, unroll
from convtune.schedules.tiling import LONG_ACTIVATIONS, SMALLEST_TILE, ceil_div, even_blocks, spaced

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, epilogue, operands, output
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

Read = Callable[..., Any]  # read(n, block, local position, channel), both of three entries
RowStage = Stage[RowTile]


class ChainedRows(Estimating[CpuTarget]):
    name = "chained_rows"
    summary = "a composite's stages block by block of rows, lanes along the row; for channels-first layouts"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if spec.channels_last or not is_chain(spec, target):
            return False
        # what lies between stages is not taken apart by residues; a row is rounded up to vectors of at least 4 lanes
        return all(stage.stride[-1] == 1 for stage in spec.stages[1:]) and spec.out_size[-1] > 2

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        out, most = cube(spec.out_size), target.vector_registers // 2
        vectors = ceil_div(out[2], lanes_along(spec, target))
        dense = [stage.out_channels for stage in spec.stages if stage.variant != "depthwise"]
        found: dict[str, tuple[KnobValue, ...]] = {
            "oc_tile": spaced(even_blocks(max(dense), most), 5),
            "ow_vectors": spaced(even_blocks(vectors, most), 4),
        }
        if len(dense) < len(spec.stages):
            found["dw_rows"] = spaced(even_blocks(out[1], most // 2), 3)
        if spec.rank == 3:
            found["od_block"] = spaced(even_blocks(out[0], 16), 3)
        found["oh_block"] = spaced(_blocks(out[1]), 6)
        found["ow_block"] = spaced(even_blocks(vectors, 256), 6) if spec.rank == 1 else (vectors,)
        found["oc_order"] = ("outer", "inner")
        return found

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        domain = self.knobs(spec, target)
        tile = RowTile(int(knobs["oc_tile"]), 1, int(knobs["ow_vectors"]), 1, 1, 1)
        if tile.sums > most_sums(tile, target) or tile.vectors > int(knobs["ow_block"]):
            return False
        if int(knobs.get("dw_rows", 1)) > int(knobs["oh_block"]):
            return False
        ends = [knobs[name] == domain[name][-1] for name in ("oc_tile", "ow_vectors") if domain[name][1:]]
        if tile.sums < SMALLEST_TILE and ends and not any(ends):
            return False
        smallest = all(knobs[name] == values[0] for name, values in domain.items() if "block" in name)
        return smallest or _block_bytes(_plan(spec, target, knobs)) <= target.l2_bytes

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        stages = _plan(spec, target, knobs)
        first, resident = stages[0], _block_bytes(stages)
        cycles = sum(_stage_cycles(stage, target, knobs, resident) for stage in stages)
        if not first.source.inside:
            moved, stride = first.source.positions * spec.in_channels, spec.stride[-1]
            cycles += spec.in_channels * first.source.size[0] * first.source.size[1] * ROW_CYCLES
            cycles += copy_cycles(4 * moved, stride)
        if is_staged(spec, stages[-1].tile):
            cycles += 2 * count(stages[-1].out) * spec.out_channels / stages[-1].tile.lanes
        return Tasks(spec.batch * count(first.source.blocks), cycles).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return tuple(pack_channels(stage.spec, stage.tile) for stage in _plan(spec, target, knobs))

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        stages = _plan(spec, target, knobs)
        *between, last = stages
        tile = replace(last.tile, groups=1, run=spec.out_channels)
        sch = Schedule(_expression(spec, stages))
        loops = split_rows(sch, spec, tile, last.out[1] // tile.rows, last.out[2] // tile.columns)
        if spec.rank == 3:
            outer, loops.inner[0] = sch.split(loops.inner[0], [None, int(knobs["od_block"])])
            loops.outer.insert(1, outer)
        tiles = ordered(last, knobs, loops.channels, loops.inner)
        sch.reorder(*loops.outer, *tiles, *loops.store)
        task = sch.fuse(*loops.outer)
        sch.parallel(task)
        _place_sums(sch, last, place_rows(sch, spec, tile, tiles[-1], loops.store), "")
        for number in reversed(range(len(between))):
            outermost = _place_between(sch, spec, between[number], knobs, task, number)
        if not stages[0].source.inside:
            place_padded_rows(sch, outermost if stages[0].lanewise else task)
        return sch.mod


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[RowStage, ...]:
    lanes, registers = lanes_along(spec, target), target.vector_registers

    def tile(stage: ConvSpec, size: Dims, _last: bool) -> RowTile:
        """The knobs say what a tile has at most: rows and vectors are spread evenly."""
        vectors, run = ceil_div(size[2], lanes), stage.out_channels // stage.groups
        if stage.variant == "depthwise":
            rows = _evenly(size[1], int(knobs["dw_rows"]))
            return RowTile(1, rows, _evenly(vectors, max(1, registers // 2 // rows)), lanes, stage.groups, run)
        channels = _evenly(run, int(knobs["oc_tile"]))
        return RowTile(channels, 1, _evenly(vectors, int(knobs["ow_vectors"])), lanes, 1, run)

    wide = spec.out_size[-1] if spec.rank > 1 else int(knobs["ow_block"]) * lanes
    return plan(spec, (int(knobs.get("od_block", 1)), int(knobs["oh_block"]), wide), tile)


def _blocks(rows: int) -> tuple[int, ...]:
    """Rows of a block: without a smaller one at the end where there is a choice of such."""
    blocks = even_blocks(rows, 64)
    whole = tuple(block for block in blocks if rows % block == 0)
    return whole if len(whole) > 3 else blocks


def _evenly(size: int, most: int) -> int:
    """The smallest block that needs no more blocks than the largest allowed."""
    return ceil_div(size, ceil_div(size, most))


def _block_bytes(stages: Sequence[RowStage]) -> int:
    """What a block keeps in memory between its stages, and its part of the input."""
    pad = stages[0].source.positions * (1 if stages[0].lanewise else stages[0].spec.in_channels)
    return 4 * (pad + sum(stage.spec.in_channels * stage.source.positions for stage in stages[1:]))


def _stage_cycles(stage: RowStage, target: CpuTarget, knobs: Knobs, resident: int) -> float:
    """Cycles of a stage for one block."""
    tile = stage.tile
    tiles = count(stage.out) // (tile.rows * tile.columns) * tile.groups * tile.blocks
    weights_resident = tile.blocks if is_inner(stage, knobs) else 1
    inputs = 4 * stage.source.positions if stage.lanewise else resident
    one = tile_cycles(stage.spec, target, tile, _unrolled(stage), weights_resident, inputs)
    return tiles * (one + 2 * tile.sums)


def _unrolled(stage: RowStage) -> int:
    """How many of the loops kh and kw are unrolled, the inner one first."""
    _, kh, kw = cube(stage.spec.kernel)
    if stage.tile.sums * kh * kw <= LARGEST_BODY["kw_kh"]:
        return 2
    return int(stage.tile.sums * kh <= LARGEST_BODY["kh"])


def _expression(spec: ConvSpec, stages: Sequence[RowStage]) -> Any:
    from tvm import te

    *between, last = stages
    arguments = Arguments(spec, [packed_shape(stage.spec, stage.tile) for stage in stages])
    read = _input(arguments, stages[0])
    for number, stage in enumerate(between):
        read = _between(arguments, stage, stages[number + 1].source, number, read)
    summand, tile, size = _summand(arguments, last, -1, read), last.tile, cube(spec.out_size)
    high, wide = last.out[1] // tile.rows, last.out[2] // tile.columns

    def of_output(n: Any, d: Any, h: Any, w: Any, _g: Any, *rest: Any) -> Any:
        return summand(n, [d // last.out[0], h // high, w // wide], (d % last.out[0], h % high, w % wide), *rest)

    tiles = (ceil_div(size[1], tile.rows), ceil_div(size[2], tile.columns))
    inner = (tile.channels, tile.rows, tile.vectors, tile.lanes)
    acc = te.compute((spec.batch, size[0], *tiles, 1, tile.groups * tile.blocks, *inner), of_output, name="acc")
    return arguments.primfunc(output(arguments, 1, row_values(spec, tile, acc, tiles[1] * tile.columns)))


def _summand(arguments: Arguments, stage: RowStage, number: int, read: Read) -> Callable[..., Any]:
    """The sum at (n, block, (d, h_tile, w_tile), channel block, channel, row, vector, lane) of a stage."""
    from tvm import te

    spec, tile = stage.spec, stage.tile
    axes = [te.reduce_axis((0, extent), name) for name, extent in zip(("kd", "kh", "kw"), cube(spec.kernel))]
    ic = te.reduce_axis((0, spec.in_channels // spec.groups), "ic")
    variant, weight, geometry = variants.primitive(spec), arguments.weights[number], Geometry.of(spec)

    def at(n: Any, block: Any, place: Any, co: Any, channel: Any, row: Any, vector: Any, lane: Any) -> Any:
        def filters(_oc: Any, i: Any, taps: Any) -> Any:
            g, b = (co // tile.blocks, co % tile.blocks) if tile.groups > 1 else (0, co)
            return weight(g, b, i, taps[0], taps[2], taps[1], channel)

        def inputs(n: Any, i: Any, local: Any) -> Any:
            return read(n, block, local, co // tile.blocks if stage.lanewise else i)

        d, h, w = place
        position = (d, h * tile.rows + row, w * tile.columns + vector * tile.lanes + lane)[3 - spec.rank :]
        term = variant.term(spec, operands(geometry, inputs, filters))
        return te.sum(term.at(n, 0, position, (ic, *axes[3 - spec.rank :])), axis=[*axes, ic])

    return at


def _input(arguments: Arguments, first: RowStage) -> Read:
    """Reads a block's part of x, zeros around; the stage `pad` where x itself does not do.

    pad: (n, *block, channel, d, h, column % stride, column // stride).
    """
    from tvm import te, tirx

    spec, stride = arguments.spec, first.spec.stride[-1]
    if first.source.inside:
        return lambda n, block, local, channel: arguments.read_x(n, channel, first.source.position(block, local))
    *high, wide = first.source.size
    columns = ceil_div(wide, stride)
    source = replace(first.source, size=(*high, columns * stride))

    def padded(n: Any, *index: Any) -> Any:
        block, channel, (d, h, residue, column) = index[:3], index[3], index[4:]
        place = source.position(block, (d, h, column * stride + residue))
        inside, value = source.conditions(place), arguments.read_x(n, channel, place)
        return te.if_then_else(tirx.all(*inside), value, tirx.const(0.0, spec.dtype)) if inside else value

    shape = (spec.batch, *source.blocks, spec.in_channels, *high, stride, columns)
    pad = te.compute(shape, padded, name="pad")
    return lambda n, block, local, channel: pad(n, *block, channel, *local[:2], local[2] % stride, local[2] // stride)


def _between(arguments: Arguments, stage: RowStage, region: Region, number: int, read: Read) -> Read:
    """The stages `acc` and `mid` of a stage that is not the last, and `tile` for an activation that is long.

    mid: (n, *block, channel, d, h, vector, lane), zeros around.
    """
    from tvm import te, tirx

    spec, tile = stage.spec, stage.tile
    tiles = (stage.out[0], stage.out[1] // tile.rows, stage.out[2] // tile.columns, tile.groups * tile.blocks)
    shape = (arguments.spec.batch, *region.blocks, *tiles, tile.channels, tile.rows, tile.vectors, tile.lanes)
    summand = _summand(arguments, stage, number, read)
    sums = te.compute(shape, lambda n, *i: summand(n, i[:3], i[3:6], *i[6:]), name=f"acc{number}")
    if spec.activation in LONG_ACTIVATIONS:
        acc = sums
        sums = te.compute(shape, lambda *i: acc[i], name=f"tile{number}")

    def value(n: Any, *index: Any) -> Any:
        block, (channel, d, h, vector, lane) = index[:3], index[3:]
        across = (vector // tile.vectors, channel // tile.channels, channel % tile.channels, h % tile.rows)
        found = sums(n, *block, d, h // tile.rows, *across, vector % tile.vectors, lane)
        found = epilogue(arguments, found, n, channel, (d, h), number)
        zero, place = tirx.const(0.0, spec.dtype), region.position(block, (d, h, vector * tile.lanes + lane))
        if columns := region.bounds(2, place[2]):  # not a branch: each lane has its own answer
            found = tirx.Select(tirx.all(*columns), found, zero)
        rows = [*region.bounds(0, place[0]), *region.bounds(1, place[1])]
        return te.if_then_else(tirx.all(*rows), found, zero) if rows else found

    vectors = stage.out[2] // tile.lanes
    mid = te.compute((*shape[:4], spec.out_channels, *stage.out[:2], vectors, tile.lanes), value, name=f"mid{number}")
    return lambda n, block, local, channel: mid(
        n, *block, channel, *local[:2], local[2] // tile.lanes, local[2] % tile.lanes
    )


def _place_sums(sch: Any, stage: RowStage, at: Any, suffix: str) -> None:
    order = (3, 0, 2, 1)  # of kd, kh, kw, ic
    place_accumulators(sch, at, reductions=4, order=order, unrolled=_unrolled(stage), stage=suffix)


def _place_between(sch: Any, spec: ConvSpec, stage: RowStage, knobs: Knobs, task: Any, number: int) -> Any:
    """Computes a stage's part of a block in the task; returns its outermost loop."""
    tile = stage.tile
    mid = sch.get_sblock(f"mid{number}")
    sch.compute_at(mid, task, preserve_unit_loops=True)
    *_, channel, d, h, vector, lane = sch.get_loops(mid)
    block, channel = sch.split(channel, [None, tile.channels])
    h, row = sch.split(h, [None, tile.rows])
    w, vector = sch.split(vector, [None, tile.vectors])
    tiles, store = ordered(stage, knobs, block, (d, h, w)), (channel, row, vector, lane)
    sch.reorder(*tiles, *store)
    if spec.stages[number].activation in LONG_ACTIVATIONS:
        staged = sch.get_sblock(f"tile{number}")
        sch.compute_at(staged, tiles[-1], preserve_unit_loops=True)
        unroll(sch, sch.get_loops(staged)[-4:])
        sch.vectorize(lane)
    else:
        unroll(sch, store)
    _place_sums(sch, stage, tiles[-1], str(number))
    return tiles[0]


chained_rows = ChainedRows()
