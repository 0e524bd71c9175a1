"""Channels-first convolution with the lanes along the output row: rows are read and stored as they lie in memory.

    parallel task = (n, group_outer, oh_outer, ow_outer [, oc_outer]):              oc_order: parallel
        pad[group, ic, row, residue, column] = x, zeros around                      pad_at: task, none
        for [oc_outer,] group_inner, od, oh_middle [, oc_outer]:                    oc_order: outer, inner
            for ow_middle:
                acc[oc_inner, row, vector, lane] = 0                                in registers
                for ic, kd, kw, kh:                                                 unroll: none, kh, kw_kh
                    acc[...] += pad[ic, row * stride + kh, kw % stride, vector * lanes + lane + kw // stride]
                                * weight[oc_outer, ic, kd, kw, kh, oc_inner]
                tile[oc_inner, row, ow_middle, vector, lane] = acc[...]
            y[oc_inner, row, ...] = activation(tile + bias + residual)

A step of the reduction reads oh_tile * ow_vectors vectors of inputs and broadcasts oc_tile weights; with kh unrolled,
rows share what they read, and since kw is outside of kh no more of it is live than one column of the kernel needs.
`pad` holds the columns of one residue modulo the stride side by side, so that strided convolutions read whole vectors
too. Rows of whole vectors are stored straight from the registers. Others go through `tile`, from which one loop stores
the row; LLVM makes vectors and a rest of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import L3_BYTES_PER_CYCLE, Tasks, stream_cycles
from convtune.schedules.row_tiling import (
    LARGEST_BODY,
    ROW_CYCLES,
    UNROLLED,
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
from convtune.schedules.tile_loops import merge_groups, place_accumulators
from convtune.schedules.tiling import SMALLEST_TILE, ceil_div, even_blocks, planes_collide, round_up, spaced

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, output, read_padded
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

L2_WAYS = 16  # of second caches: of Zen 5, while Zen 4 has 8


class RowLanes(Estimating[CpuTarget]):
    name = "row_lanes"
    summary = "lanes are columns of the output row; for channels-first layouts"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.channels_last:
            return False
        # a row is rounded up to vectors of at least 4 lanes
        plain = ("conv", "pointwise", "dilated", "grouped", "shuffled_grouped", "depthwise")
        return spec.variant in plain and spec.out_size[-1] > 2

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        out, kernel, run = Geometry.of(spec).out, cube(spec.kernel), spec.out_channels // spec.groups
        vectors, most = ceil_div(out[2], lanes_along(spec, target)), target.vector_registers // 2
        return {
            "oc_tile": spaced(even_blocks(run, most), 5),
            "oh_tile": spaced(even_blocks(out[1], most), 5 if run == 1 else 3),
            "ow_vectors": spaced(even_blocks(vectors, most), 4),
            "oh_block": spaced(even_blocks(out[1], 64), 4),  # in rows; a whole number of tiles is taken
            "ow_block": spaced(even_blocks(vectors, 1024), 4) if spec.rank == 1 else (vectors,),
            "group_block": tuple(block for block in (1, 4, 16) if spec.groups % block == 0),
            "oc_order": ("parallel", "outer", "inner") if run > 1 else ("outer",),
            "unroll": tuple(name for name, taps in (("none", 2), ("kh", kernel[1]), ("kw_kh", kernel[2])) if taps > 1),
            "pad_at": ("none", "task") if _rows_fit(spec, target) else ("task",),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        tile, kernel, out = _tile(spec, target, knobs), cube(spec.kernel), Geometry.of(spec).out
        if tile.sums > most_sums(tile, target):
            return False
        if tile.sums < SMALLEST_TILE and not self._at_an_end(spec, target, knobs):
            return False
        taps = kernel[1] * (kernel[2] if knobs["unroll"] == "kw_kh" else 1)
        if tile.sums * taps > LARGEST_BODY.get(knobs["unroll"], tile.sums * taps):
            return False
        if tile.rows > int(knobs["oh_block"]) or tile.vectors > int(knobs["ow_block"]):
            return False
        if tile.blocks == 1 and knobs["oc_order"] != "outer":
            return False
        if knobs["pad_at"] == "none" and (out[1] % tile.rows or out[2] % tile.columns):
            return False
        whole = int(knobs["oh_block"]) == out[1] and _pad_bytes(spec, tile, knobs) <= target.l1d_bytes
        return int(knobs["group_block"]) == 1 or whole

    def _at_an_end(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        """Whether one dimension of the tile is as large as can be: the output may be too small for more sums."""
        domain = self.knobs(spec, target)
        ends = [knobs[knob] == domain[knob][-1] for knob in ("oc_tile", "oh_tile", "ow_vectors") if domain[knob][1:]]
        return any(ends) or not ends

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, out, stride = _tile(spec, target, knobs), Geometry.of(spec).out, spec.stride[-1]
        high, wide = _task_tiles(tile, knobs)
        down, across = ceil_div(out[1], high * tile.rows), ceil_div(out[2], wide * tile.columns)
        shared = 1 if knobs["oc_order"] == "parallel" else tile.blocks  # channel blocks of a task
        group_block, pad_bytes = int(knobs["group_block"]), _pad_bytes(spec, tile, knobs)
        weights_resident = tile.blocks if knobs["oc_order"] == "inner" else 1
        one = tile_cycles(spec, target, tile, UNROLLED[knobs["unroll"]], weights_resident, pad_bytes)
        one += tile.sums * (4 if is_staged(spec, tile) else 2)
        cycles = group_block * out[0] * high * wide * shared * one
        if knobs["pad_at"] == "task":
            rows = pad_bytes // (4 * (wide * tile.columns * stride + cube(spec.span)[2] - 1))
            cycles += rows * ROW_CYCLES + copy_cycles(pad_bytes, stride)
            cycles += 2 * stream_cycles(target, pad_bytes, pad_bytes)
        cycles += pad_bytes / L3_BYTES_PER_CYCLE / 2
        if knobs["pad_at"] == "none" and _evicted(spec):
            cycles += (shared - 1) * pad_bytes / L3_BYTES_PER_CYCLE
        return Tasks(spec.batch * down * across * spec.groups // group_block * tile.blocks // shared, cycles).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (pack_channels(spec, _tile(spec, target, knobs)),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile = _tile(spec, target, knobs)
        sch = Schedule(_expression(spec, tile, knobs["pad_at"]))
        loops = split_rows(sch, spec, tile, *_task_tiles(tile, knobs), int(knobs["group_block"]))
        task, at = loops.in_tasks(sch, knobs["oc_order"])
        place_accumulators(
            sch,
            place_rows(sch, spec, tile, at, loops.store),
            reductions=4,
            order=(3, 0, 2, 1),  # of kd, kh, kw, ic
            unrolled=UNROLLED[knobs["unroll"]],
            scope="global",
        )
        if knobs["pad_at"] == "task":
            place_padded_rows(sch, task)
        merge_groups(sch, spec, tile)
        return sch.mod


def _rows_fit(spec: ConvSpec, target: CpuTarget) -> bool:
    """Whether whole vectors of the input are what the output needs, with no zeros around."""
    whole = spec.out_size[-1] % lanes_along(spec, target) == 0
    return whole and spec.stride[-1] == 1 and Geometry.of(spec).inside(spec)


def _evicted(spec: ConvSpec) -> bool:
    """Whether the rows of a group's channels displace each other in the caches, so that they are read again from memory
    for each block of output channels: planes whose size is a power of two."""
    return spec.in_channels // spec.groups > L2_WAYS and planes_collide(spec)


def _tile(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> RowTile:
    channels, rows, vectors = int(knobs["oc_tile"]), int(knobs["oh_tile"]), int(knobs["ow_vectors"])
    return RowTile(channels, rows, vectors, lanes_along(spec, target), spec.groups, spec.out_channels // spec.groups)


def _task_tiles(tile: RowTile, knobs: Knobs) -> tuple[int, int]:
    """Tiles of a task: down and across."""
    return ceil_div(int(knobs["oh_block"]), tile.rows), ceil_div(int(knobs["ow_block"]), tile.vectors)


def _pad_bytes(spec: ConvSpec, tile: RowTile, knobs: Knobs) -> int:
    """What a task reads of the input, zeros around included."""
    high, wide = _task_tiles(tile, knobs)
    _, *task = Geometry.of(spec, (1, high * tile.rows, wide * tile.columns)).padded
    positions = Geometry.of(spec).padded[0] * count(task)
    return 4 * int(knobs["group_block"]) * spec.in_channels // spec.groups * positions


def _expression(spec: ConvSpec, tile: RowTile, pad_at: KnobValue) -> Any:
    from tvm import te

    out, depth = Geometry.of(spec).out, spec.in_channels // spec.groups
    rounded = (out[0], round_up(out[1], tile.rows), round_up(out[2], tile.columns))
    geometry = Geometry.of(spec, rounded)
    arguments = Arguments(spec, [packed_shape(spec, tile)])
    weight, pad = arguments.weights[0], _padded_rows(arguments, geometry) if pad_at == "task" else None
    kernel = [te.reduce_axis((0, extent), name) for name, extent in zip(("kd", "kh", "kw"), geometry.kernel)]
    ic = te.reduce_axis((0, depth), "ic")

    def summand(n: Any, d: Any, h: Any, w: Any, g: Any, b: Any, channel: Any, row: Any, vector: Any, lane: Any) -> Any:
        def read(n: Any, _ic: Any, position: Any) -> Any:
            if pad is None:
                return arguments.read_x(n, g * depth + ic, position)
            *high, column = position
            return pad(n, g, ic, *high, column % geometry.stride[2], column // geometry.stride[2])

        def filters(_oc: Any, i: Any, taps: Any) -> Any:
            return weight(g, b, i, taps[0], taps[2], taps[1], channel)

        term = variants.primitive(spec).term(spec, operands(geometry, read, filters))
        out = (d, h * tile.rows + row, w * tile.columns + vector * tile.lanes + lane)[3 - spec.rank :]
        return te.sum(term.at(n, 0, out, (ic, *kernel[3 - spec.rank :])), axis=[*kernel, ic])

    outer = (spec.batch, out[0], rounded[1] // tile.rows, rounded[2] // tile.columns)
    shape = (*outer, tile.groups, tile.blocks, tile.channels, tile.rows, tile.vectors, tile.lanes)
    acc = te.compute(shape, summand, name="acc")
    return arguments.primfunc(output(arguments, tile.groups, row_values(spec, tile, acc, rounded[2])))


def _padded_rows(arguments: Arguments, geometry: Geometry) -> Any:
    """The stage `pad`: (n, group, ic, d, h, column % stride, column // stride), the input with zeros around it."""
    from tvm import te

    spec, stride = arguments.spec, geometry.stride[2]
    (*high, wide), depth = geometry.padded, spec.in_channels // spec.groups
    whole = replace(geometry, padded=(*high, round_up(wide, stride)))

    def read(n: Any, g: Any, ic: Any, d: Any, h: Any, residue: Any, column: Any) -> Any:
        return read_padded(arguments, whole, n, g * depth + ic, (d, h, column * stride + residue))

    return te.compute((spec.batch, spec.groups, depth, *high, stride, whole.padded[2] // stride), read, name="pad")


row_lanes = RowLanes()
