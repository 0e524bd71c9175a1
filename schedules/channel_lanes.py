"""Depthwise and grouped convolution with few channels a group: every lane of a vector is an output channel.

    parallel task = (n, od, oh_outer, ow_outer [, oc_outer]):         oc_order: parallel
        for [oc_outer]:                                               oc_order: outer
            pad[row, column, i, lane] = x[row, column, i-th input channel of the lane's group], zeros around
            for tiles of oh_tile x ow_tile:
                acc[row, column, oc_vector, lane] = 0                 in registers
                for kd, [kh,] ic:
                    for [kh,] kw: (unrolled, so that neighbouring columns and rows share the loaded inputs)
                        acc[...] += pad[row + kh, column + kw, ic, lane] * weight[oc_outer, kd, kh, kw, ic, lane]
                y[...] = activation(acc + bias + residual)

A vector holds the channels of as many whole groups as fit. `pad` spreads a group's inputs over its lanes once per
block, with whole vectors read and permuted in registers, and stays in the first caches; depthwise just copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    L2_BYTES_PER_CYCLE,
    L3_BYTES_PER_CYCLE,
    MEMORY_BYTES_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    step_cycles,
    stream_cycles,
    transpose_cycles,
)
from convtune.schedules.past_caches import exceeds_caches
from convtune.schedules.tile_loops import place_accumulators, place_store, split_output, tiled_output, unroll
from convtune.schedules.tiling import (
    LARGEST_BODY,
    LINE_BYTES,
    SMALLEST_TILE,
    Tile,
    ceil_div,
    even_blocks,
    round_up,
    spaced,
    width_blocks,
)

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, read_padded
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

LARGEST_SPREAD = 512  # moves of single elements that LLVM turns into permutes


class ChannelLanes(Estimating[CpuTarget]):
    name = "channel_lanes"
    summary = "lanes are output channels, inputs spread over them; for depthwise and small groups"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant not in ("depthwise", "grouped"):
            return False
        depth, run = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        spread = depth * target.lanes if depth > 1 or run > 1 else 0
        return run <= target.lanes and spread <= LARGEST_SPREAD

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        out, kernel = Geometry.of(spec).out, cube(spec.kernel)
        columns = self._columns(spec, target)
        vectors = ceil_div(spec.out_channels, target.lanes)
        return {
            "lanes": self._widths(spec, target),
            "oh_tile": tuple(rows for rows in (1, 2, 4) if rows <= out[1]),
            "ow_tile": columns,
            "oc_vectors": tuple(range(1, min(3, vectors) + 1)),
            "oh_block": spaced(even_blocks(out[1], 64), 6),  # in rows; a whole number of tiles is taken
            "ow_block": width_blocks(spec, out[2], columns, 5),
            "oc_order": ("parallel", "outer"),
            "unroll": ("kw", "kh_kw") if kernel[1] > 1 else ("kw",),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        tile, kernel = self._tile(spec, knobs), cube(spec.kernel)
        sums = tile.rows * tile.columns * tile.vectors
        taps = kernel[2] * (kernel[1] if knobs["unroll"] == "kh_kw" else 1)
        depth = spec.in_channels // spec.groups
        if sums > target.vector_registers - 6 or (sums * taps > LARGEST_BODY and not self._smallest(knobs, tile)):
            return False
        if tile.rows > int(knobs["oh_block"]) or sums < min(SMALLEST_TILE, max(self._columns(spec, target))):
            return False
        return depth * tile.width * tile.vectors <= LARGEST_SPREAD

    def _columns(self, spec: ConvSpec, target: CpuTarget) -> tuple[int, ...]:
        return even_blocks(Geometry.of(spec).out[2], min(16, target.vector_registers // 2))

    def _smallest(self, knobs: Knobs, tile: Tile) -> bool:
        # a wide kernel exceeds the limit with any tile; `kw` stays rolled then
        return tile.rows * tile.vectors == 1 and knobs["unroll"] == "kw"

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, kernel, stride = self._tile(spec, knobs), cube(spec.kernel), cube(spec.stride)
        out, span, depth = Geometry.of(spec).out, cube(spec.span), spec.in_channels // spec.groups
        sums, taps = tile.rows * tile.columns * tile.vectors, kernel[2]
        unrolled_rows = kernel[1] if knobs["unroll"] == "kh_kw" else 1
        # neighbouring columns share loaded inputs, as long as these stay in registers beside the sums
        reach = min((tile.columns - 1) * stride[2] + taps, tile.columns * taps)
        shared = sums + (reach + 1) * tile.vectors <= target.vector_registers
        inputs = tile.rows * tile.vectors * (reach if shared else tile.columns * taps)
        loads = unrolled_rows * (inputs + tile.vectors * taps)
        body = step_cycles(target, sums * taps * unrolled_rows, loads) + 4
        per_tile = kernel[0] * kernel[1] // unrolled_rows * depth * body + 2 * sums + TILE_CYCLES
        oh_block, tiles_wide = int(knobs["oh_block"]), ceil_div(out[2], tile.columns)
        ow_block = min(int(knobs["ow_block"]), tiles_wide)
        positions = (
            ((oh_block - 1) * stride[1] + span[1]) * span[0] * ((ow_block * tile.columns - 1) * stride[2] + span[2])
        )
        pad_bytes = positions * depth * tile.block * 4
        per_block = ceil_div(oh_block, tile.rows) * ow_block * per_tile
        # channels last a position's channels are read by the line, of which a narrow block uses a part
        read_bytes = round_up(tile.block * 4, LINE_BYTES) if spec.channels_last else tile.block * 4
        per_block += pad_bytes / L2_BYTES_PER_CYCLE * 1.5 + positions * read_bytes / L3_BYTES_PER_CYCLE / 2
        per_block += 3 * stream_cycles(target, pad_bytes, pad_bytes)
        outputs = oh_block * ow_block * tile.columns * tile.block
        if exceeds_caches(target, 4 * count(spec.out_shape)):  # and a line is read before it is stored
            per_block += (positions * read_bytes + 2 * 4 * outputs) / MEMORY_BYTES_PER_CYCLE
        per_block += transpose_cycles(spec, pad_bytes // 4 + outputs)
        tasks = spec.batch * out[0] * ceil_div(out[1], oh_block) * ceil_div(tiles_wide, ow_block)
        if knobs["oc_order"] == "parallel":
            return Tasks(tasks * tile.blocks, per_block).on(target)
        return Tasks(tasks, per_block * tile.blocks).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        tile = self._tile(spec, knobs)
        rank, depth = spec.rank, spec.in_channels // spec.groups
        full = tile.blocks * tile.block
        packed = (tile.blocks, *cube(spec.kernel), depth, tile.vectors, tile.lanes)
        return (
            (
                {"op": "pad", "widths": [[0, full - spec.out_channels], *([0, 0] for _ in range(rank + 1))]},
                {"op": "reshape", "shape": [tile.blocks, tile.vectors, tile.lanes, depth, *spec.kernel]},
                {"op": "transpose", "axes": [0, *range(4, 4 + rank), 3, 1, 2]},
                {"op": "reshape", "shape": list(packed)},
                {"op": "pad", "widths": [*([0, 0] for _ in packed[:-1]), [0, tile.width - tile.lanes]]},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile = self._tile(spec, knobs)
        sch = Schedule(self._expression(spec, tile))
        tiles_high = ceil_div(int(knobs["oh_block"]), tile.rows)
        loops = split_output(sch, spec, tile, tiles_high, int(knobs["ow_block"]))
        task, at = loops.in_tasks(sch, knobs["oc_order"])
        place_store(sch, spec, tile, at, loops.store)
        body = tile.rows * tile.columns * tile.vectors * spec.kernel[-1]
        unrolled = 2 if knobs["unroll"] == "kh_kw" else int(body <= LARGEST_BODY)
        order = (0, 3, 1, 2) if unrolled == 2 else (0, 1, 3, 2)  # of kd, kh, kw, ic
        place_accumulators(sch, at, 4, order, unrolled)
        self._place_pad(sch, spec, task if knobs["oc_order"] == "parallel" else loops.channels)
        return sch.mod

    def _widths(self, spec: ConvSpec, target: CpuTarget) -> tuple[int, ...]:
        """Vector widths: half vectors too where only they divide the channels, since a store of part of one is slow."""
        half, run = target.lanes // 2, spec.out_channels // spec.groups
        partly = spec.out_channels % target.lanes != 0 and spec.out_channels % half == 0 and half % run == 0
        return (target.lanes, half) if partly else (target.lanes,)

    def _tile(self, spec: ConvSpec, knobs: Knobs) -> Tile:
        width, run = int(knobs["lanes"]), spec.out_channels // spec.groups
        rows, columns, vectors = int(knobs["oh_tile"]), int(knobs["ow_tile"]), int(knobs["oc_vectors"])
        return Tile(rows, columns, vectors, width // run * run, width, 1, spec.out_channels)

    def _expression(self, spec: ConvSpec, tile: Tile) -> Any:
        from tvm import te

        out = Geometry.of(spec).out
        rounded = (out[0], round_up(out[1], tile.rows), round_up(out[2], tile.columns))
        geometry = Geometry.of(spec, rounded)
        depth = spec.in_channels // spec.groups
        arguments = Arguments(spec, [(tile.blocks, *geometry.kernel, depth, tile.vectors, tile.width)])
        pad, weight = _spread(arguments, geometry, tile), arguments.weights[0]
        kernel = [te.reduce_axis((0, extent), name) for name, extent in zip(("kd", "kh", "kw"), geometry.kernel)]
        ic = te.reduce_axis((0, depth), "ic")

        def summand(n: Any, d: Any, h: Any, w: Any, _g: Any, co: Any, row: Any, column: Any, cv: Any, lane: Any) -> Any:
            term = variants.primitive(spec).term(
                spec,
                operands(
                    geometry,
                    lambda n, _ic, position: pad(n, co, *position, cv, ic, lane),
                    lambda _oc, _ic, taps: weight(co, *taps, ic, cv, lane),
                ),
            )
            position = (d, h * tile.rows + row, w * tile.columns + column)[3 - spec.rank :]
            return te.sum(term.at(n, 0, position, (ic, *kernel[3 - spec.rank :])), axis=[*kernel, ic])

        outer = (spec.batch, out[0], rounded[1] // tile.rows, rounded[2] // tile.columns)
        return arguments.primfunc(tiled_output(arguments, tile, outer, summand))

    def _place_pad(self, sch: Any, spec: ConvSpec, at: Any) -> None:
        """Computes the stage `pad` at a loop around tiles."""
        pad = sch.get_sblock("pad")
        sch.compute_at(pad, at, preserve_unit_loops=True)
        *_, column, vector, ic, lane = sch.get_loops(pad)
        if not _is_spread(spec):
            if spec.channels_last:
                sch.vectorize(lane)
            return
        for loop in (vector, ic, lane):  # element by element: LLVM makes permutes of it
            sch.unroll(loop)
        natural = sch.get_sblock("natural")
        sch.compute_at(natural, column, preserve_unit_loops=True)
        sch.set_scope(natural, 0, "local")
        vector, channel = sch.get_loops(natural)[-2:]
        power_of_two = int(sch.get(channel).extent).bit_count() == 1
        if spec.channels_last and power_of_two:
            unroll(sch, [vector, channel])
        else:
            sch.unroll(channel)


def _is_spread(spec: ConvSpec) -> bool:
    """Whether a group has more than one input or output channel, so that inputs are not simply the lanes."""
    return spec.groups != spec.in_channels or spec.groups != spec.out_channels


def _spread(arguments: Arguments, geometry: Geometry, tile: Tile) -> Any:
    """The stage `pad`: (n, block, d, h, w, vector, ic in group, lane), each lane with the inputs of its group.

    It reads the stage `natural`: (n, block, d, h, w, vector, channel), the zero-padded input channels of a vector.
    """
    from tvm import te, tirx

    spec = arguments.spec
    depth, run = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    channels = tile.lanes // run * depth  # input channels of a vector
    zero = tirx.const(0.0, spec.dtype)

    def read(n: Any, co: Any, d: Any, h: Any, w: Any, cv: Any, c: Any) -> Any:
        ic = (co * tile.vectors + cv) * channels + c
        value = read_padded(arguments, geometry, n, ic, (d, h, w))
        full = tile.blocks * tile.vectors * channels
        return value if full == spec.in_channels else te.if_then_else(ic < spec.in_channels, value, zero)

    outer = (spec.batch, tile.blocks, *geometry.padded, tile.vectors)
    if not _is_spread(spec):
        direct = lambda n, co, d, h, w, cv, _ic, lane: read(n, co, d, h, w, cv, lane)  # noqa: E731
        return te.compute((*outer, 1, tile.width), direct, name="pad")
    natural = te.compute((*outer, channels), read, name="natural")

    def spread(*index: Any) -> Any:
        *place, ic, lane = index
        value = natural(*place, lane // run * depth + ic)
        return value if tile.lanes == tile.width else te.if_then_else(lane < tile.lanes, value, zero)

    return te.compute((*outer, depth, tile.width), spread, name="pad")


channel_lanes = ChannelLanes()
