"""Dense and grouped convolution as a direct register tile, any rank and layout.

    parallel task = (n, od, oh_outer, ow_outer [, oc_outer]):         oc_order: parallel
        pad: the task's input rows, channels last, zeros around       pad_at: task, root (once for all), none
        for [oc_outer,] oh_inner, ow_block [, oc_outer]:              oc_order: outer, inner
            acc[ow_inner, oc_vector, lane] = 0                        in registers
            for kd, kh, kw, ic:
                acc[...] += pad[..., ow_inner * stride + kw, ic] * weight[oc_outer, kd, kh, kw, ic, oc_vector, lane]
            y[...] = activation(acc + bias + residual)

A step of the reduction reads `ow_tile` broadcast inputs and `oc_vectors` vectors of weights for ow_tile * oc_vectors
FMAs; ow_tile * oc_vectors + oc_vectors + 1 registers hold it. The output is rounded up to whole tiles, which keeps the
reduction free of conditions: only the store looks at the border.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    BARRIER_CYCLES,
    L2_BYTES_PER_CYCLE,
    L3_BYTES_PER_CYCLE,
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
    merge_groups,
    pack_blocks,
    packed_blocks,
    place_accumulators,
    place_pad,
    place_store,
    round_up,
    spaced,
    split_output,
    suits_registers,
    tiled_output,
)

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, padded_input
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


class DenseDirect(Estimating[CpuTarget]):
    name = "dense_direct"
    summary = "register tile of output columns x channels; weights packed by channel block"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget):
            return False
        # a group is rounded up to whole vectors: below a quarter of one, lanes across groups waste less
        run = spec.out_channels // spec.groups
        return spec.variant in ("conv", "pointwise", "dilated", "shuffled_grouped") or (
            spec.variant == "grouped" and run * 4 >= target.lanes
        )

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        out = Geometry.of(spec).out
        columns = even_blocks(out[2], target.vector_registers - 2)
        run = spec.out_channels // spec.groups
        tiles = ceil_div(out[2], max(columns))
        inside = Geometry.of(spec).inside(spec)
        return {
            "ow_tile": columns,
            "oc_vectors": tuple(range(1, min(4, ceil_div(run, target.lanes)) + 1)),
            "oh_block": spaced(even_blocks(out[1], 32), 5),
            "ow_block": spaced(even_blocks(tiles, 64), 4) if spec.rank == 1 else (out[2],),
            "oc_order": ("parallel", "outer", "inner"),
            "pad_at": ("none", "root", "task") if inside else ("root", "task"),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        columns, vectors, pad_at = int(knobs["ow_tile"]), int(knobs["oc_vectors"]), knobs["pad_at"]
        width = Geometry.of(spec).out[2]
        if not suits_registers(target, columns, vectors, width):
            return False
        if Geometry.of(spec).inside(spec) and (pad_at == "none") != (width % columns == 0):
            return False
        return not (knobs["oc_order"] == "parallel" and pad_at == "task")

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile = self._tile(spec, target, knobs)
        out, span, stride = Geometry.of(spec).out, cube(spec.span), cube(spec.stride)
        order, pad_at = knobs["oc_order"], knobs["pad_at"]
        oh_block, tiles_wide = int(knobs["oh_block"]), ceil_div(out[2], tile.columns)
        ow_block = min(int(knobs["ow_block"]), tiles_wide)
        depth = spec.in_channels // spec.groups * count(spec.kernel)
        block_bytes = depth * tile.block * 4
        blocks = tile.groups * tile.blocks
        resident = block_bytes * (blocks if order == "inner" else 1)
        compute = depth * step_cycles(tile.columns * tile.vectors, tile.columns + tile.vectors)
        compute += 2 * tile.columns * tile.vectors + TILE_CYCLES
        per_tile = overlapped(compute, stream_cycles(target, block_bytes, resident))
        rows = ((oh_block - 1) * stride[1] + span[1]) * span[0]
        rows_bytes = rows * ((ow_block * tile.columns - 1) * stride[2] + span[2]) * spec.in_channels * 4
        passes = 1 if order != "outer" else blocks
        cycles = oh_block * ow_block * per_tile * (1 if order == "parallel" else blocks)
        cycles += passes * stream_cycles(target, rows_bytes, rows_bytes) / 2
        tasks = spec.batch * out[0] * ceil_div(out[1], oh_block) * ceil_div(tiles_wide, ow_block)
        if pad_at == "task":
            cycles += 2 * rows_bytes / L2_BYTES_PER_CYCLE + transpose_cycles(spec, rows_bytes // 4)
        total = Tasks(tasks * (blocks if order == "parallel" else 1), cycles).on(target)
        if pad_at == "root":
            total += count(spec.in_shape) * 8 / L3_BYTES_PER_CYCLE / target.threads + BARRIER_CYCLES
            total += transpose_cycles(spec, count(spec.in_shape)) / target.threads
        return total + transpose_cycles(spec, count(spec.out_shape)) / target.threads

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (pack_blocks(spec, self._tile(spec, target, knobs)),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile = self._tile(spec, target, knobs)
        sch = Schedule(self._expression(spec, tile, knobs["pad_at"]))
        loops = split_output(sch, spec, tile, int(knobs["oh_block"]), int(knobs["ow_block"]))
        order = [*loops.outer, loops.channels, *loops.inner]
        if knobs["oc_order"] == "inner":
            order = [*loops.outer, *loops.inner, loops.channels]
        sch.reorder(*order, *loops.store)
        shared = len(loops.outer) + (knobs["oc_order"] == "parallel")
        task = sch.fuse(*order[:shared])
        sch.parallel(task)
        place_store(sch, spec, tile, order[-1], loops.store)
        place_accumulators(sch, order[-1], reductions=4, order=(0, 1, 2, 3), unrolled=0)
        if knobs["pad_at"] != "none":
            place_pad(sch, spec, target, task if knobs["pad_at"] == "task" else None)
        merge_groups(sch, spec, tile)
        return sch.mod

    def _tile(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Tile:
        run = spec.out_channels // spec.groups
        return Tile(1, int(knobs["ow_tile"]), int(knobs["oc_vectors"]), target.lanes, target.lanes, spec.groups, run)

    def _expression(self, spec: ConvSpec, tile: Tile, pad_at: KnobValue) -> Any:
        from tvm import te

        out = Geometry.of(spec).out
        geometry = Geometry.of(spec, (*out[:2], round_up(out[2], tile.columns)))
        depth = spec.in_channels // spec.groups
        arguments = Arguments(spec, [packed_blocks(spec, tile)])
        read = arguments.read_x
        if pad_at != "none":
            pad = padded_input(arguments, geometry)
            read = lambda n, ic, position: pad(n, *position, ic)  # noqa: E731
        kernel = [te.reduce_axis((0, extent), name) for name, extent in zip(("kd", "kh", "kw"), geometry.kernel)]
        ic = te.reduce_axis((0, depth), "ic")
        variant = variants.primitive(spec)

        def summand(n: Any, d: Any, h: Any, wo: Any, g: Any, co: Any, hi: Any, wi: Any, cv: Any, lane: Any) -> Any:
            weight = arguments.weights[0]
            term = variant.term(
                spec, operands(geometry, read, lambda _oc, i, taps: weight(g, co, *taps, i, cv * tile.lanes + lane))
            )
            position = (d, h + hi, wo * tile.columns + wi)[3 - spec.rank :]
            oc = variant.channel(spec, g, 0)  # any channel of the group reads the same input
            return te.sum(term.at(n, oc, position, (ic, *kernel[3 - spec.rank :])), axis=[*kernel, ic])

        shape = (spec.batch, *out[:2], geometry.out[2] // tile.columns)
        return arguments.primfunc(tiled_output(arguments, tile, shape, summand))


dense_direct = DenseDirect()
