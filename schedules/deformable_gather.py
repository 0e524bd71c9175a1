"""Deformable convolution as a sampling table, a gather and a register tile, all within a block of outputs.

    pad: x with its channels last, in a parallel region of its own    where the layout has them first
    parallel task = (n, block of outputs [, oc_outer]):               oc_order: parallel
        offsets[...], masks[...], table[...]: of the task's outputs and taps      channels last, rows: all: of a tile's
        for row of the kernel, or once for all of them:               rows: one, all
            for tile, kh, kw, column, chunk, lane:                    vectors of channels
                col[tile, kh, kw, chunk, column, lane]
                    = mask * sum over neighbours q of pad[table's place of q, chunk, lane] * table's weight of q
            for [oc_outer,] tiles of outputs [, oc_outer]:            oc_order: outer, inner
                for kh, kw, chunk, ic:                                acc in registers, from 0 or the row before
                    acc[column, oc_vector, lane] += col[tile, kh, kw, chunk, column, ic]
                                                    * weight[oc_outer, kh, kw, chunk, ic, oc_vector, lane]
        y[...] = activation(acc + bias + residual)                    tile by tile

The outputs of an image are one row, cut into tiles and blocks wherever its lines end. Of `col`, which is kh * kw times
as large as x, there is only what a block needs, within L2, in the order in which its tiles read it. The table and the
gather are `deformable_sampling`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.deformable_sampling import chunk, fetches_ahead, fetching_ahead, gathered, place_gather
from convtune.schedules.estimate import (
    BARRIER_CYCLES,
    TILE_CYCLES,
    Tasks,
    load_cycles,
    overlapped,
    stream_cycles,
    tile_step_cycles,
    transpose_cycles,
)
from convtune.schedules.tile_loops import place_accumulators, place_pad, place_store, split_channels, tiled_sums, unroll
from convtune.schedules.tiling import (
    Tile,
    ceil_div,
    column_tile,
    even_blocks,
    pack_blocks,
    packed_blocks,
    round_up,
    spaced,
    suits_registers,
)

from convtune.expression import Arguments, cube, epilogue
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget
from convtune.variants.deformable import CORNERS

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # tiles of a task, of which a domain has some
# Of these two no measurement of their own is recorded, only of whole kernels.
TABLE_CYCLES = 30.0  # of a vector of sampled points
MOVE_CYCLES = 3.0  # of a sampled point's offsets and mask, which come from memory
# Of a step of the reduction that the FMAs do not hide. Without it the default of 64 channels at 64x64 had tiles of 9
# columns, 920 us in turn, and has 14 with it, 898.
STEP_CYCLES = 0.5


class DeformableGather(Estimating[CpuTarget]):
    name = "deformable_gather"
    summary = "sampling tables and gather of a block of outputs, then a register tile over what was gathered"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, CpuTarget) and spec.variant == "deformable"

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        rows = ("all", "one") if spec.kernel[0] > 1 else ("all",)
        most = min(count(spec.out_size), max(_outputs_in_l2(spec, target, only) for only in rows))
        run = spec.out_channels // spec.groups
        return {
            "tile": _columns(count(spec.out_size), self._most_columns(spec, target)),
            "oc_vectors": tuple(range(1, min(4, ceil_div(run, target.lanes)) + 1)),
            "block": spaced((tiles for tiles in BLOCKS if tiles <= most), 8),
            "oc_order": ("parallel", "outer", "inner"),
            "rows": rows,
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        columns, vectors, block = int(knobs["tile"]), int(knobs["oc_vectors"]), int(knobs["block"])
        widest = _columns(count(spec.out_size), self._most_columns(spec, target))[-1]
        if target.tile_registers < target.vector_registers and columns * vectors > target.tile_registers * 2 // 3:
            return False  # LLVM loads ahead for all channels of a chunk, and spilled 20 times for 104 multiply-adds
        if not suits_registers(target, columns, vectors, widest):
            return False
        fits = columns * block <= _outputs_in_l2(spec, target, str(knobs["rows"]))
        return fits and block <= ceil_div(count(spec.out_size), columns)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, block, order = self._tile(spec, target, knobs), int(knobs["block"]), knobs["oc_order"]
        blocks, parts = tile.groups * tile.blocks, spec.kernel[0] if knobs["rows"] == "one" else 1
        products = self._product_cycles(spec, target, tile, block, parts, order == "inner")
        gathered = block * tile.columns * gather_cycles(spec, target, order == "parallel")
        tasks = spec.batch * ceil_div(ceil_div(count(spec.out_size), tile.columns), block)
        if order == "parallel":
            total = Tasks(tasks * blocks, gathered + products).on(target)
        else:
            total = Tasks(tasks, gathered + products * blocks).on(target)
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
        around = task
        if knobs["rows"] == "all":
            place_accumulators(sch, loops[-1], reductions=4, order=(0, 1, 2, 3), unrolled=0)
        else:
            around = _place_sums(sch, task, order == "inner")
        place_gather(sch, spec, target, task, around)
        if not spec.channels_last:
            place_pad(sch, spec, target, None)
        _merge(sch, spec, tile)
        return fetching_ahead(sch.mod, spec, tile) if fetches_ahead(spec, target) else sch.mod

    def _most_columns(self, spec: ConvSpec, target: CpuTarget) -> int:
        return min(target.vector_registers - 2, _outputs_in_l2(spec, target, "all"))

    def _product_cycles(
        self, spec: ConvSpec, target: CpuTarget, tile: Tile, block: int, parts: int, inner: bool
    ) -> float:
        """Of a block of outputs and one of channels; inner: a tile meets all of these before the next tile does."""
        depth, sums = spec.in_channels // spec.groups * count(spec.kernel), tile.columns * tile.vectors
        step = tile_step_cycles(target, tile.columns, tile.vectors) + STEP_CYCLES
        compute = depth * step + 2 * sums + TILE_CYCLES
        if parts > 1:
            compute += count(spec.kernel) * 2 * sums + parts * TILE_CYCLES
        weight_bytes, all_weight_bytes = depth * tile.block * 4, depth * tile.block * 4 * tile.groups * tile.blocks
        col_bytes = tile.columns * depth * 4
        first = stream_cycles(target, weight_bytes, all_weight_bytes + block * col_bytes / parts)
        kept = all_weight_bytes if inner else weight_bytes + block * col_bytes
        again = stream_cycles(target, weight_bytes, kept / parts)
        read = stream_cycles(target, col_bytes, col_bytes * (1 if inner else block) / parts)
        return overlapped(block * compute, first + (block - 1) * again + block * read)

    def _tile(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Tile:
        return column_tile(spec, target, int(knobs["tile"]), int(knobs["oc_vectors"]))


def gather_cycles(spec: ConvSpec, target: CpuTarget, one_block: bool) -> float:
    """Of an output; in a task of one channel block only what its group reads."""
    assert spec.offset_groups is not None
    taps, channels = count(spec.kernel), spec.in_channels // (spec.groups if one_block else 1)
    vectors = ceil_div(min(channels, spec.in_channels // spec.offset_groups), target.lanes)
    groups = ceil_div(channels * spec.offset_groups, spec.in_channels)
    neighbours = len(CORNERS) * target.vector_bytes  # which lie anywhere around
    read = stream_cycles(target, neighbours, count(spec.in_shape[1:]) * 4)
    if fetches_ahead(spec, target):
        read /= 2
    loads = groups * vectors * (max(load_cycles(target, len(CORNERS)), read) + 1)
    return taps * (loads + spec.offset_groups * (TABLE_CYCLES / target.lanes + MOVE_CYCLES))


_columns = functools.lru_cache(maxsize=64)(even_blocks)  # which looks at every number of blocks that there could be


def _outputs_in_l2(spec: ConvSpec, target: CpuTarget, rows: str) -> int:
    """As many outputs as have what they gather, and their sums if these are kept, in half of L2; at least one."""
    if rows == "all":
        return max(1, target.l2_bytes // 2 // (count(spec.kernel) * spec.in_channels * 4))
    return max(1, target.l2_bytes // 2 // ((spec.kernel[1] * spec.in_channels + spec.out_channels) * 4))


def _expression(spec: ConvSpec, tile: Tile, block: int) -> Any:
    from tvm import te

    depth, wide = spec.in_channels // spec.groups, chunk(spec, tile.width)
    tiles = ceil_div(count(spec.out_size), tile.columns)
    arguments = Arguments(spec, [packed_blocks(spec, tile)])
    col, weight = gathered(arguments, tile, round_up(tiles, block)), arguments.weights[0]
    kernel = [te.reduce_axis((0, extent), name) for name, extent in zip(("kh", "kw"), spec.kernel)]
    part, ic = te.reduce_axis((0, depth // wide), "part"), te.reduce_axis((0, wide), "ic")

    def summand(n: Any, at: Any, g: Any, co: Any, _row: Any, column: Any, cv: Any, lane: Any) -> Any:
        sampled = col(n, at, *kernel, g * (depth // wide) + part, column, ic)
        return te.sum(
            sampled * weight(g, co, 0, *kernel, part * wide + ic, cv * tile.lanes + lane), axis=[*kernel, part, ic]
        )

    return arguments.primfunc(_output(arguments, tile, tiled_sums(spec, tile, (spec.batch, tiles), summand)))


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


def _place_sums(sch: Any, task: Any, tiles_outer: bool) -> Any:
    """Computes `acc` in a task, row after row of the kernel; returns their loop."""
    acc = sch.get_sblock("acc")
    sch.compute_at(acc, task, preserve_unit_loops=True)
    at, g, co, row, column, vector, lane, kh, kw, part, ic = sch.get_loops(acc)[-11:]
    tiles = [at, g, co] if tiles_outer else [g, co, at]
    sch.reorder(kh, *tiles, kw, part, ic, row, column, vector, lane)
    unroll(sch, [row, column, vector, lane])
    unroll(sch, sch.get_loops(sch.decompose_reduction(acc, kh))[-4:])
    sch.set_scope(acc, 0, "global")
    return kh


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
