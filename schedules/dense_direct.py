"""Dense and grouped convolution as a direct register tile, any rank and layout.

    parallel task = (n_outer, od_outer, oh_outer, ow_outer [, oc_outer]):     oc_order: parallel
        pad: the task's input rows, channels last, zeros around       pad_at: task, root (once for all), none
        for [oc_outer,] n_inner, od_inner, oh_inner, ow_block [, oc_outer]:   oc_order: outer, inner
            acc[ow_inner, oc_vector, lane] = 0                        in registers
            for kd, kh, kw, ic:
                acc[...] += pad[..., ow_inner * stride + kw, ic] * weight[oc_outer, kd, kh, kw, ic, oc_vector, lane]
            y[...] = activation(acc + bias + residual)

Where the weights of a channel block are more than the second cache holds, a task goes over its tiles once for every
`ic_block` input channels, whose weights stay there meanwhile, and adds the tiles up in memory:

        for [oc_outer,] ic_outer, oh_inner, ow_block:
            sums[oh_inner, ow_block, ow_inner, oc_vector, lane] += acc[...]   of ic_block channels
        for oh_inner, ow_block: y[...] = activation(sums + bias + residual)

A step of the reduction reads `ow_tile` broadcast inputs and `oc_vectors` vectors of weights for ow_tile * oc_vectors
FMAs; ow_tile * oc_vectors + oc_vectors + 1 registers hold it. The output is rounded up to whole tiles, which keeps the
reduction free of conditions: only the store looks at the border.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    L2_BYTES_PER_CYCLE,
    L3_BYTES_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    overlapped,
    padding_cycles,
    stream_cycles,
    tile_step_cycles,
    transpose_cycles,
    write_cycles,
)
from convtune.schedules.tile_loops import (
    merge_groups,
    place_accumulators,
    place_pad,
    place_store,
    place_sums,
    split_output,
    summed_output,
    tiled_output,
)
from convtune.schedules.tiling import (
    LINE_BYTES,
    MOST_VECTORS,
    Tile,
    ceil_div,
    column_tile,
    even_blocks,
    pack_blocks,
    packed_blocks,
    planes_collide,
    reduction_blocks,
    round_up,
    spaced,
    suits_registers,
    width_blocks,
)

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, padded_input
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


TAIL = 0.01  # of a task, at the end of a parallel loop, where a held-up thread is waited for; a tie-break: more tasks


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
        out = _geometry(spec).out
        columns = even_blocks(out[2], target.vector_registers - 2)
        run = spec.out_channels // spec.groups
        inside = _inside(spec)
        blocks = reduction_blocks(spec, target)
        return {
            "ow_tile": columns,
            "oc_vectors": tuple(range(1, min(MOST_VECTORS, ceil_div(run, target.lanes)) + 1)),
            "oh_block": _row_blocks(out[1]),
            "ow_block": width_blocks(spec, out[2], columns),
            "oc_order": ("parallel", "outer", "inner"),
            "pad_at": ("none", "root", "task") if inside else ("root", "task"),
            **({"ic_block": blocks} if blocks else {}),
            **_planes(spec),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        columns, vectors, pad_at = int(knobs["ow_tile"]), int(knobs["oc_vectors"]), knobs["pad_at"]
        width = _geometry(spec).out[2]
        if not suits_registers(target, columns, vectors, width):
            return False
        if _inside(spec) and (pad_at == "none") != (width % columns == 0):
            return False
        if _parts(spec, knobs) > 1 and knobs["oc_order"] == "inner":
            return False  # its tiles want the weights of all channel blocks one after the other
        return not (knobs["oc_order"] == "parallel" and pad_at == "task")

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile = self._tile(spec, target, knobs)
        out, span, stride = _geometry(spec).out, cube(spec.span), cube(spec.stride)
        order, pad_at = knobs["oc_order"], knobs["pad_at"]
        oh_block, tiles_wide = int(knobs["oh_block"]), ceil_div(out[2], tile.columns)
        ow_block = min(int(knobs["ow_block"]), tiles_wide)
        parts, blocks = _parts(spec, knobs), tile.groups * tile.blocks
        steps = spec.in_channels // spec.groups * count(spec.kernel) // parts
        part_bytes = steps * tile.block * 4
        sums = tile.columns * tile.vectors
        compute = steps * tile_step_cycles(target, tile.columns, tile.vectors) + 2 * sums + TILE_CYCLES
        compute += (2 + 3 / parts) * sums if parts > 1 else 0
        resident = part_bytes * (blocks if order == "inner" else 1)
        run_bytes = 4 * (tile.block if blocks > 1 else tile.columns * tile.run)
        written = min(tile.block, tile.run) * tile.columns * 4
        compute = overlapped(compute, write_cycles(target, written, run_bytes, 4 * count(spec.out_shape)) / parts)
        if pad_at == "none" and not spec.channels_last and planes_collide(spec):
            compute += steps * LINE_BYTES / L3_BYTES_PER_CYCLE  # the channels' lines displace each other in the caches
        per_tile = overlapped(compute, stream_cycles(target, part_bytes, resident))
        first = overlapped(compute, stream_cycles(target, part_bytes, part_bytes * parts * blocks))
        planes = _block(knobs, "n_block") * _block(knobs, "od_block")
        rows = ((oh_block - 1) * stride[1] + span[1]) * ((_block(knobs, "od_block") - 1) * stride[0] + span[0])
        rows_bytes = rows * ((ow_block * tile.columns - 1) * stride[2] + span[2]) * spec.in_channels * 4
        rows_bytes *= _block(knobs, "n_block")
        passes = 1 if order != "outer" else blocks
        cycles = (
            ((planes * oh_block * ow_block - 1) * per_tile + first) * parts * (1 if order == "parallel" else blocks)
        )
        cycles += passes * stream_cycles(target, rows_bytes, rows_bytes) / 2
        tasks = ceil_div(spec.batch, _block(knobs, "n_block")) * ceil_div(out[0], _block(knobs, "od_block"))
        tasks *= ceil_div(out[1], oh_block) * ceil_div(tiles_wide, ow_block)
        if pad_at == "task":
            cycles += rows_bytes / L2_BYTES_PER_CYCLE + transpose_cycles(spec, rows_bytes // 4)
            cycles += max(rows_bytes / L2_BYTES_PER_CYCLE, 2 * stream_cycles(target, rows_bytes, rows_bytes))
        total = Tasks(tasks * (blocks if order == "parallel" else 1), cycles).on(target) + TAIL * cycles
        if pad_at == "root":
            total += padding_cycles(spec, target)
            total += transpose_cycles(spec, count(spec.in_shape)) / target.threads
        return total + transpose_cycles(spec, count(spec.out_shape)) / target.threads

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (pack_blocks(spec, self._tile(spec, target, knobs), _parts(spec, knobs)),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile = self._tile(spec, target, knobs)
        sch = Schedule(self._expression(spec, tile, knobs))
        tiles_wide = ceil_div(_geometry(spec).out[2], tile.columns)
        planes = _block(knobs, "n_block"), _block(knobs, "od_block")
        loops = split_output(sch, spec, tile, int(knobs["oh_block"]), min(int(knobs["ow_block"]), tiles_wide), *planes)
        task, at = loops.in_tasks(sch, knobs["oc_order"])
        if _parts(spec, knobs) > 1:
            channels = task if knobs["oc_order"] == "parallel" else loops.channels
            at = place_sums(sch, spec, tile, channels, loops.store)
        else:
            place_store(sch, spec, tile, at, loops.store)
        place_accumulators(sch, at, reductions=4, order=(0, 1, 2, 3), unrolled=0)
        if knobs["pad_at"] != "none":
            place_pad(sch, spec, target, task if knobs["pad_at"] == "task" else None)
        merge_groups(sch, spec, tile)
        return sch.mod

    def _tile(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Tile:
        return column_tile(spec, target, int(knobs["ow_tile"]), int(knobs["oc_vectors"]))

    def _expression(self, spec: ConvSpec, tile: Tile, knobs: Knobs) -> Any:
        from tvm import te

        out = _geometry(spec).out
        geometry = Geometry.of(spec, (*out[:2], round_up(out[2], tile.columns)))
        parts = _parts(spec, knobs)
        depth = spec.in_channels // spec.groups // parts
        arguments = Arguments(spec, [packed_blocks(spec, tile, parts)])
        read = arguments.read_x
        if knobs["pad_at"] != "none":
            pad = padded_input(arguments, geometry)
            read = lambda n, ic, position: pad(n, *position, ic)  # noqa: E731
        kernel = [te.reduce_axis((0, extent), name) for name, extent in zip(("kd", "kh", "kw"), geometry.kernel)]
        ic = te.reduce_axis((0, depth), "ic")
        variant = variants.primitive(spec)

        def summand(n: Any, d: Any, h: Any, wo: Any, part: Any, *index: Any) -> Any:
            g, co, hi, wi, cv, lane = index
            block = (g, co, part) if parts > 1 else (g, co)
            weight = lambda _oc, _ic, taps: arguments.weights[0](*block, *taps, ic, cv * tile.lanes + lane)  # noqa: E731
            term = variant.term(spec, operands(geometry, read, weight))
            position = (d, h + hi, wo * tile.columns + wi)[3 - spec.rank :]
            oc = variant.channel(spec, g, 0)  # any channel of the group reads the same input
            place = term.at(n, oc, position, (part * depth + ic, *kernel[3 - spec.rank :]))
            return te.sum(place, axis=[*kernel, ic])

        shape = (spec.batch, *out[:2], geometry.out[2] // tile.columns)
        if parts > 1:
            return arguments.primfunc(summed_output(arguments, tile, shape, parts, summand))
        whole = lambda n, d, h, wo, *index: summand(n, d, h, wo, 0, *index)  # noqa: E731
        return arguments.primfunc(tiled_output(arguments, tile, shape, whole))


@functools.lru_cache(maxsize=256)
def _geometry(spec: ConvSpec) -> Geometry:
    """Asked for once per candidate, of which there are thousands."""
    return Geometry.of(spec)


@functools.lru_cache(maxsize=256)
def _inside(spec: ConvSpec) -> bool:
    return _geometry(spec).inside(spec)


def _row_blocks(rows: int) -> tuple[int, ...]:
    """Rows of tiles in a task: divisors where there are enough, since a last task that is cut short costs balance."""
    blocks = even_blocks(rows, 32)
    whole = [n for n in blocks if rows % n == 0]
    return spaced(whole if len(whole) >= 4 else blocks, 5)


def _planes(spec: ConvSpec) -> dict[str, tuple[KnobValue, ...]]:
    """The knob for what a task computes besides one plane: planes that share input rows, else images.

    Either shares the weights.
    """
    depth = _geometry(spec).out[0]
    if depth > 1 and cube(spec.kernel)[0] > 1:
        return {"od_block": spaced(even_blocks(depth, 16), 3)}
    return {"n_block": spaced(even_blocks(spec.batch, 16), 3)} if spec.batch > 1 else {}


def _block(knobs: Knobs, name: str) -> int:
    """Of a loop that small layers leave whole: one turn a task."""
    return int(knobs.get(name, 1))


def _parts(spec: ConvSpec, knobs: Knobs) -> int:
    """Of the reduction."""
    depth = spec.in_channels // spec.groups
    return depth // int(knobs.get("ic_block", depth))


dense_direct = DenseDirect()
