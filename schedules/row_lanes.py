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
the row; LLVM makes vectors and a rest of it. Where the kernel is 1 and nothing moves, all positions are one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    FEWEST_SUMS,
    FMAS_PER_CYCLE,
    L2_BYTES_PER_CYCLE,
    L3_BYTES_PER_CYCLE,
    LOADS_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    overlapped,
    stream_cycles,
)
from convtune.schedules.one_row import in_one_row, position_in, restore_arguments
from convtune.schedules.tiling import (
    LONG_ACTIVATIONS,
    ceil_div,
    even_blocks,
    place_accumulators,
    round_up,
    spaced,
    unroll,
)

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, output, read_padded
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

# FMAs in an unrolled body: in longer ones LLVM moves loads so far ahead that registers spill
LARGEST_BODY: Mapping[KnobValue, int] = {"kh": 160, "kw_kh": 80}
SMALLEST_TILE = 6  # sums
LOOP_CYCLES = 2.0
OVERLAPPING = 32  # steps of a reduction so short that the next tile's begins meanwhile
LINE_BYTES = 64  # of a cache line
ROW_CYCLES = 2.0  # to begin copying a row
UNROLLED = {"none": 0, "kh": 1, "kw_kh": 2}  # loops


@dataclass(frozen=True)
class RowTile:
    """A register tile of output: channels x rows x vectors of columns. Channels come in `groups` runs of `run`."""

    channels: int
    rows: int
    vectors: int
    lanes: int
    groups: int
    run: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    @property
    def blocks(self) -> int:
        """Channel blocks of a run."""
        return ceil_div(self.run, self.channels)

    @property
    def sums(self) -> int:
        """Accumulators, in vectors."""
        return self.channels * self.rows * self.vectors


class RowLanes(Estimating):
    name = "row_lanes"
    summary = "lanes are columns of the output row; for channels-first layouts"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if target.family not in ("x86", "arm") or spec.channels_last:
            return False
        # a row is rounded up to vectors of at least 4 lanes
        plain = ("conv", "pointwise", "dilated", "grouped", "shuffled_grouped", "depthwise")
        return spec.variant in plain and in_one_row(spec).out_size[-1] > 2

    def knobs(self, spec: ConvSpec, target: Target) -> Mapping[str, tuple[KnobValue, ...]]:
        spec = in_one_row(spec)
        out, kernel, run = Geometry.of(spec).out, cube(spec.kernel), spec.out_channels // spec.groups
        vectors, most = ceil_div(out[2], _lanes(spec, target)), target.vector_registers // 2
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

    def allows(self, spec: ConvSpec, target: Target, knobs: Knobs) -> bool:
        spec = in_one_row(spec)
        tile, kernel, out = _tile(spec, target, knobs), cube(spec.kernel), Geometry.of(spec).out
        if tile.sums > _most_sums(tile, target):
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

    def _at_an_end(self, spec: ConvSpec, target: Target, knobs: Knobs) -> bool:
        """Whether one dimension of the tile is as large as can be: the output may be too small for more sums."""
        domain = self.knobs(spec, target)
        ends = [knobs[knob] == domain[knob][-1] for knob in ("oc_tile", "oh_tile", "ow_vectors") if domain[knob][1:]]
        return any(ends) or not ends

    def estimate(self, spec: ConvSpec, target: Target, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        spec = in_one_row(spec)
        tile, out, stride = _tile(spec, target, knobs), Geometry.of(spec).out, spec.stride[-1]
        high, wide = _task_tiles(spec, tile, knobs)
        down, across = ceil_div(out[1], high * tile.rows), ceil_div(out[2], wide * tile.columns)
        shared = 1 if knobs["oc_order"] == "parallel" else tile.blocks  # channel blocks of a task
        group_block, pad_bytes = int(knobs["group_block"]), _pad_bytes(spec, tile, knobs)
        cycles = group_block * out[0] * high * wide * shared * self._tile_cycles(spec, target, knobs, pad_bytes)
        if knobs["pad_at"] == "task":
            rows = pad_bytes // (4 * (wide * tile.columns * stride + cube(spec.span)[2] - 1))
            cycles += rows * ROW_CYCLES + pad_bytes / L2_BYTES_PER_CYCLE * (1 if stride == 1 else 2.5)
            cycles += 2 * stream_cycles(target, pad_bytes, pad_bytes)
        cycles += pad_bytes / L3_BYTES_PER_CYCLE / 2
        return Tasks(spec.batch * down * across * spec.groups // group_block * tile.blocks // shared, cycles).on(target)

    def _tile_cycles(self, spec: ConvSpec, target: Target, knobs: Knobs, pad_bytes: int) -> float:
        tile, kernel, stride = _tile(spec, target, knobs), cube(spec.kernel), cube(spec.stride)
        depth = spec.in_channels // spec.groups
        rows = tile.rows * kernel[1]  # that one kw reads
        if knobs["unroll"] != "none" and cube(spec.dilation)[1] == 1:
            rows = min(rows, (tile.rows - 1) * stride[1] + kernel[1])
        # an unaligned load of a whole line always reads two
        crossing = 1 + tile.lanes * 4 / LINE_BYTES if kernel[2] > 1 else 1
        loads = rows * tile.vectors * crossing + tile.channels * kernel[1]
        fmas = kernel[1] * _fma_cycles(tile.sums, depth * count(spec.kernel))
        body = max(fmas, loads / LOADS_PER_CYCLE) + (0 if knobs["unroll"] == "kw_kh" else LOOP_CYCLES)
        weights_bytes = depth * count(spec.kernel) * tile.channels * 4
        window_bytes = depth * kernel[0] * rows * tile.columns * stride[2] * 4
        resident = weights_bytes * (tile.blocks if knobs["oc_order"] == "inner" else 1)
        stream = stream_cycles(target, weights_bytes, resident) + stream_cycles(target, window_bytes, pad_bytes)
        compute = depth * kernel[0] * kernel[2] * body
        return overlapped(compute, stream) + tile.sums * (4 if _is_staged(spec, tile) else 2) + TILE_CYCLES

    def pack(self, spec: ConvSpec, target: Target, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        spec = in_one_row(spec)
        tile, rank, depth = _tile(spec, target, knobs), spec.rank, spec.in_channels // spec.groups
        full = tile.blocks * tile.channels
        steps: tuple[PackStep, ...] = (
            {"op": "reshape", "shape": [tile.groups, tile.run, depth, *spec.kernel]},
            {"op": "pad", "widths": [[0, 0], [0, full - tile.run], *([0, 0] for _ in range(rank + 1))]},
            {"op": "reshape", "shape": [tile.groups, tile.blocks, tile.channels, depth, *cube(spec.kernel)]},
            {"op": "transpose", "axes": [0, 1, 3, 4, 6, 5, 2]},
        )
        return (steps,)

    def schedule(self, spec: ConvSpec, target: Target, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        row = in_one_row(spec)
        tile = _tile(row, target, knobs)
        sch = Schedule(_expression(row, tile, knobs["pad_at"]))
        outer, block, inner, store = self._split_output(sch, row, tile, knobs)
        order = [*outer, *inner, block] if knobs["oc_order"] == "inner" else [*outer, block, *inner]
        sch.reorder(*order, *store)
        shared = len(outer) + (knobs["oc_order"] == "parallel")
        task = sch.fuse(*order[:shared])
        sch.parallel(task)
        place_accumulators(
            sch,
            self._place_store(sch, row, tile, task if shared == len(order) else order[-1], store),
            reductions=4,
            order=(3, 0, 2, 1),  # of kd, kh, kw, ic
            unrolled=UNROLLED[str(knobs["unroll"])],
            scope="global",
        )
        if knobs["pad_at"] == "task":
            _place_pad(sch, task)
        restore_arguments(sch, spec, "pad" if knobs["pad_at"] == "task" else "acc_update")
        _restore_output(sch, spec, tile)
        return sch.mod

    def _split_output(
        self, sch: Any, spec: ConvSpec, tile: RowTile, knobs: Knobs
    ) -> tuple[list[Any], Any, list[Any], list[Any]]:
        """The loops of `y`: those of tasks, of channel blocks, of the tiles of a task, and of what is stored."""
        n, *rest = sch.get_loops(sch.get_sblock("y"))
        *group, channel = rest[: -spec.rank]
        if group and variants.primitive(spec).interleaved:
            group, channel = [channel], group[0]
        *depth, width = rest[-spec.rank :]
        high, wide = _task_tiles(spec, tile, knobs)
        block, oc_inner = sch.split(channel, [None, tile.channels])
        outer, inner, store = [n], [], [oc_inner]
        if group:
            group_outer, group_inner = sch.split(group[0], [None, int(knobs["group_block"])])
            outer, inner = [n, group_outer], [group_inner]
        if depth:
            *depth, height = depth
            tiles, oh_inner = sch.split(height, [None, tile.rows])
            oh_outer, oh_middle = sch.split(tiles, [None, high])
            outer, inner, store = [*outer, oh_outer], [*inner, *depth, oh_middle], [oc_inner, oh_inner]
        columns = min(wide * tile.columns, spec.out_size[-1])
        ow_outer, width = sch.split(width, [None, columns])
        if spec.out_size[-1] % tile.lanes == 0:  # then the border's condition is one of whole vectors
            vectors, lane = sch.split(width, [None, tile.lanes])
            ow_middle, vector = sch.split(vectors, [None, tile.vectors])
            inner_columns = [ow_middle, vector, lane]
        else:
            inner_columns = [width]
        if not _is_staged(spec, tile):
            inner.append(inner_columns.pop(0))
        return [*outer, ow_outer], block, inner, [*store, *inner_columns]

    def _place_store(self, sch: Any, spec: ConvSpec, tile: RowTile, at: Any, store: list[Any]) -> Any:
        """Makes the store one of vectors, or lets it read `tile`; returns the loop that the accumulators belong to."""
        if not _is_staged(spec, tile):
            unroll(sch, store)
            return at
        if spec.out_size[-1] % tile.lanes == 0:
            sch.vectorize(store[-1])
        staged = sch.get_sblock("tile")
        sch.compute_at(staged, at, preserve_unit_loops=True)
        *_, channel, row, width = sch.get_loops(staged)
        ow_middle, vector, lane = sch.split(width, [None, tile.vectors, tile.lanes])
        sch.reorder(ow_middle, channel, row, vector, lane)
        unroll(sch, [channel, row, vector, lane])
        return ow_middle


def _most_sums(tile: RowTile, target: Target) -> int:
    """Accumulators that leave registers for the operands of a step."""
    if tile.channels == 1:  # each input is used for kernel rows alone, and LLVM loads several of them ahead
        return target.vector_registers // 2
    return target.vector_registers - tile.rows * tile.vectors - 1


def _lanes(spec: ConvSpec, target: Target) -> int:
    """Lanes of a vector: fewer than the target's where a row fits in fewer."""
    row = 1 << (spec.out_size[-1] - 1).bit_length()
    return min(target.lanes, max(4, row))


def _rows_fit(spec: ConvSpec, target: Target) -> bool:
    """Whether whole vectors of the input are what the output needs, with no zeros around."""
    whole = spec.out_size[-1] % _lanes(spec, target) == 0
    return whole and spec.stride[-1] == 1 and Geometry.of(spec).inside(spec)


def _tile(spec: ConvSpec, target: Target, knobs: Knobs) -> RowTile:
    channels, rows, vectors = int(knobs["oc_tile"]), int(knobs["oh_tile"]), int(knobs["ow_vectors"])
    return RowTile(channels, rows, vectors, _lanes(spec, target), spec.groups, spec.out_channels // spec.groups)


def _is_staged(spec: ConvSpec, tile: RowTile) -> bool:
    # accumulators stay in registers only while every access to them is unrolled: see tiling.needs_staging
    return spec.activation in LONG_ACTIVATIONS or spec.out_size[-1] % tile.lanes != 0


def _task_tiles(spec: ConvSpec, tile: RowTile, knobs: Knobs) -> tuple[int, int]:
    """Tiles of a task: down and across."""
    return ceil_div(int(knobs["oh_block"]), tile.rows), ceil_div(int(knobs["ow_block"]), tile.vectors)


def _pad_bytes(spec: ConvSpec, tile: RowTile, knobs: Knobs) -> int:
    """What a task reads of the input, zeros around included."""
    high, wide = _task_tiles(spec, tile, knobs)
    _, *task = Geometry.of(spec, (1, high * tile.rows, wide * tile.columns)).padded
    positions = Geometry.of(spec).padded[0] * count(task)
    return 4 * int(knobs["group_block"]) * spec.in_channels // spec.groups * positions


def _expression(spec: ConvSpec, tile: RowTile, pad_at: KnobValue) -> Any:
    from tvm import te

    out, depth = Geometry.of(spec).out, spec.in_channels // spec.groups
    rounded = (out[0], round_up(out[1], tile.rows), round_up(out[2], tile.columns))
    geometry = Geometry.of(spec, rounded)
    kd, kh, kw = geometry.kernel
    arguments = Arguments(spec, [(tile.groups, tile.blocks, depth, kd, kw, kh, tile.channels)])
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
    return arguments.primfunc(output(arguments, tile.groups, _value(spec, tile, acc, rounded[2])))


def _value(spec: ConvSpec, tile: RowTile, acc: Any, width: int) -> Any:
    """What `y` reads: `acc`, or the stage `tile`: (n, d, h_tile, group, block, channel, row, column)."""
    from tvm import te

    def sums(n: Any, d: Any, h: Any, g: Any, b: Any, channel: Any, row: Any, w: Any) -> Any:
        lane = w % tile.columns
        return acc(n, d, h, w // tile.columns, g, b, channel, row, lane // tile.lanes, lane % tile.lanes)

    read = sums
    if _is_staged(spec, tile):
        n, d, h, _, g, b, channels, rows, _, _ = acc.shape
        read = te.compute((n, d, h, g, b, channels, rows, width), sums, name="tile")

    def value(n: Any, group: Any, within: Any, position: Any) -> Any:
        d, h, w = position
        block, channel = within // tile.channels, within % tile.channels
        return read(n, d, h // tile.rows, group, block, channel, h % tile.rows, w)

    return value


def _padded_rows(arguments: Arguments, geometry: Geometry) -> Any:
    """The stage `pad`: (n, group, ic, d, h, column % stride, column // stride), the input with zeros around it."""
    from tvm import te

    spec, stride = arguments.spec, geometry.stride[2]
    (*high, wide), depth = geometry.padded, spec.in_channels // spec.groups
    whole = replace(geometry, padded=(*high, round_up(wide, stride)))

    def read(n: Any, g: Any, ic: Any, d: Any, h: Any, residue: Any, column: Any) -> Any:
        return read_padded(arguments, whole, n, g * depth + ic, (d, h, column * stride + residue))

    return te.compute((spec.batch, spec.groups, depth, *high, stride, whole.padded[2] // stride), read, name="pad")


def _fma_cycles(sums: int, steps: int) -> float:
    """One step's FMAs, of which the next depends on, unless the processor has other tiles to go on with."""
    return (sums if steps <= OVERLAPPING else max(sums, FEWEST_SUMS)) / FMAS_PER_CYCLE


def _restore_output(sch: Any, spec: ConvSpec, tile: RowTile) -> None:
    """Gives `y` the spec's shape, once nothing needs to see its groups and its positions as they were."""
    run = tile.groups if variants.primitive(spec).interleaved else tile.run
    if tile.groups > 1:
        sch.transform_layout("y", ("write", 0), lambda n, i, j, *place: [n, i * run + j, *position_in(spec, place)])
    elif in_one_row(spec) != spec:
        sch.transform_layout("y", ("write", 0), lambda n, channel, *place: [n, channel, *position_in(spec, place)])


def _place_pad(sch: Any, at: Any) -> None:
    pad = sch.get_sblock("pad")
    sch.compute_at(pad, at, preserve_unit_loops=True)
    *_, residue, column = sch.get_loops(pad)
    sch.reorder(column, residue)
    sch.unroll(residue)
    # zeros and input apart, in loops with no condition: LLVM makes copies of one, and of strided reads shuffles
    sch.annotate(column, "pragma_loop_partition_hint", 1)


row_lanes = RowLanes()
