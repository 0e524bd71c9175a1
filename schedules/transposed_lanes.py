"""Transposed convolution with the phases of all dimensions as further output channels, which share every input.

    parallel task = (n, ud, uh_outer, uw_outer [, block]):            order: parallel
        pad: the task's input rows, zeros around                      pad_at: task, root (once for all), none
        for [block,] uh, uw tiles [, block]:                          order: outer, inner
            acc[uw_inner, vector, lane] = 0                           in registers
            for jd, jh, jw, ic:
                acc[...] += pad[..., uw_inner - jw, ic] * weight[block, j, ic, vector, lane]
            y[..., u * stride + phase - before, oc] = activation(acc + bias + residual)

A lane is a channel c = (phase of d, of h, of w, oc). Counted from the first output without padding, output
u * stride + a reads input u - j by tap a + j * stride, so the phases of a u differ in their weights alone; channels
last, those of a row lie side by side in y. Taps that a phase lacks are zeros: this is for kernels of whole strides,
above all those with few channels. The outputs that the padding takes away are computed and not stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.cropping import cropped
from convtune.schedules.estimate import (
    L2_BYTES_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    burst_cycles,
    overlapped,
    padding_cycles,
    stream_cycles,
    tile_step_cycles,
)
from convtune.schedules.tile_loops import OutputLoops, place_accumulators, place_pad, unroll
from convtune.schedules.tiling import (
    LONG_ACTIVATIONS,
    Tile,
    ceil_div,
    even_blocks,
    round_up,
    spaced,
    suits_registers,
    width_blocks,
)
from convtune.schedules.transposed_phases import far_rows

from convtune.expression import Arguments, Geometry, cube, epilogue, padded_input
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

Dims = tuple[int, ...]

ELEMENT_CYCLES = 5  # of one that is stored by itself, whose place in the output takes divisions
FEWEST_STORED = 4  # lanes
MOST_UNROLLED = 24  # stores of parts of vectors, which LLVM then makes of registers
COPY_CYCLES = 4.0  # of a vector that is stored in parts from a copy in memory


class TransposedLanes(Estimating[CpuTarget]):
    name = "transposed_lanes"
    summary = "phases as further output channels of one dense convolution; for few channels and whole strides"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant != "transposed":
            return False
        return spec.channels_last and spec.groups == 1 and all(d == 1 for d in spec.dilation)

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        geometry = fold_geometry(spec)
        out, vectors = geometry.out, ceil_div(_channels(spec), target.lanes)
        columns = even_blocks(out[2], target.vector_registers - 2)
        most = 4 if out[2] > 1 else 12  # one column needs many sums to hide the latency of an FMA
        return {
            "ow_tile": columns,
            "oc_vectors": tuple(v for v in (1, 2, 3, 4, 5, 6, 8, 12) if v <= min(most, vectors) or v == vectors <= 6),
            "oh_block": spaced(even_blocks(out[1], 32), 5),
            "ow_block": width_blocks(spec, out[2], columns),
            "oc_order": ("parallel", "outer", "inner"),
            "pad_at": ("none", "root", "task") if geometry.inside(spec) else ("root", "task"),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        columns, vectors, pad_at = int(knobs["ow_tile"]), int(knobs["oc_vectors"]), knobs["pad_at"]
        geometry = fold_geometry(spec)
        if not suits_registers(target, columns, vectors, geometry.out[2]):
            return False
        if pad_at == "none" and not fold_geometry(spec, columns).inside(spec):
            return False
        return not (knobs["oc_order"] == "parallel" and pad_at == "task")

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, geometry = self.tile(spec, target, knobs), fold_geometry(spec)
        out, order, pad_at = geometry.out, knobs["oc_order"], knobs["pad_at"]
        parallel, inner = order == "parallel", order == "inner"
        oh_block, tiles_wide = int(knobs["oh_block"]), ceil_div(out[2], tile.columns)
        ow_block = min(int(knobs["ow_block"]), tiles_wide)
        depth = spec.in_channels * count(geometry.kernel)
        step = tile_step_cycles(target, tile.columns, tile.vectors)
        compute = depth * step * far_rows(spec, target, tile.columns)
        compute += tile.columns * tile.vectors * (1 + _store_cycles(spec, tile)) + TILE_CYCLES
        compute += burst_cycles(target, tile.columns * tile.vectors, 4 * count(spec.out_shape))
        block_bytes = depth * tile.block * 4
        first_tile = overlapped(compute, stream_cycles(target, block_bytes, depth * tile.blocks * tile.block * 4))
        resident = overlapped(compute, stream_cycles(target, block_bytes, block_bytes))
        per_tile = first_tile if inner else resident
        rows = (oh_block + geometry.kernel[1] - 1) * geometry.kernel[0]
        rows_bytes = rows * (ow_block * tile.columns + geometry.kernel[2] - 1) * spec.in_channels * 4
        rows_cycles = stream_cycles(target, rows_bytes, rows_bytes) / 2
        per_pass = first_tile + (oh_block * ow_block - 1) * per_tile + (0 if inner else rows_cycles)
        cycles = per_pass * (1 if parallel else tile.blocks) + (rows_cycles if inner else 0)
        if pad_at == "task":
            cycles += 2 * rows_bytes / L2_BYTES_PER_CYCLE
        tasks = spec.batch * out[0] * ceil_div(out[1], oh_block) * ceil_div(tiles_wide, ow_block)
        total = Tasks(tasks * (tile.blocks if parallel else 1), cycles).on(target)
        if pad_at == "root":
            total += padding_cycles(spec, target)
        return total

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """(ic, oc, taps) to (block, j, ic, channel in block), zeros for taps and channels there are not."""
        tile, rank, missing = self.tile(spec, target, knobs), spec.rank, 3 - spec.rank
        strides, taps = _strides(spec)[missing:], fold_geometry(spec).kernel[missing:]
        ends = [[0, j * s - k] for j, s, k in zip(taps, strides, spec.kernel)]
        sizes = [size for pair in zip(taps, strides) for size in pair]
        of_taps, of_phases = [2 + 2 * axis for axis in range(rank)], [3 + 2 * axis for axis in range(rank)]
        channels, full = _channels(spec), tile.blocks * tile.block
        return (
            (
                {"op": "pad", "widths": [[0, 0], [0, 0], *ends]},
                {"op": "reshape", "shape": [spec.in_channels, spec.out_channels, *sizes]},
                {"op": "transpose", "axes": [*of_phases, 1, *of_taps, 0]},
                {"op": "reshape", "shape": [channels, *taps, spec.in_channels]},
                {"op": "pad", "widths": [[0, full - channels], *([0, 0] for _ in range(rank + 1))]},
                {"op": "reshape", "shape": [tile.blocks, tile.block, *taps, spec.in_channels]},
                {"op": "transpose", "axes": [0, *range(2, 3 + rank), 1]},
                {"op": "reshape", "shape": list(self._packed(spec, tile))},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile = self.tile(spec, target, knobs)
        sch = Schedule(self._expression(spec, tile, knobs["pad_at"]))
        n, ud, uh, uw, channel = sch.get_loops(sch.get_sblock("y"))
        block, vector, lane = sch.split(channel, [tile.blocks, tile.vectors, tile.lanes])
        uh_outer, uh = sch.split(uh, [None, int(knobs["oh_block"])])
        tiles, column = sch.split(uw, [None, tile.columns])
        uw_outer, uw = sch.split(tiles, [None, min(int(knobs["ow_block"]), int(sch.get(tiles).extent))])
        loops = OutputLoops([n, ud, uh_outer, uw_outer], block, [uh, uw], [column, vector, lane])
        task, at = loops.in_tasks(sch, knobs["oc_order"])
        if _stages(spec, tile):
            staged = sch.get_sblock("tile")
            sch.compute_at(staged, at, preserve_unit_loops=True)
            unroll(sch, sch.get_loops(staged)[-4:])
            if stored_lanes(spec, tile) > 1:
                sch.vectorize(sch.split(lane, [None, stored_lanes(spec, tile)])[1])
        else:
            unroll(sch, [column, vector, lane])
        place_accumulators(sch, at, reductions=4, order=(0, 1, 2, 3), unrolled=0)
        if knobs["pad_at"] != "none":
            place_pad(sch, spec, target, task if knobs["pad_at"] == "task" else None)
        places = Places(spec)
        return cropped(sch.mod["main"], spec, places.of, places.inside)

    def _packed(self, spec: ConvSpec, tile: Tile) -> Dims:
        return (tile.blocks, *fold_geometry(spec).kernel, spec.in_channels, tile.block)

    def tile(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Tile:
        """The register tile of a candidate."""
        columns, vectors = int(knobs["ow_tile"]), int(knobs["oc_vectors"])
        return Tile(1, columns, vectors, target.lanes, target.lanes, 1, _channels(spec))

    def _expression(self, spec: ConvSpec, tile: Tile, pad_at: KnobValue) -> Any:
        from tvm import te

        geometry = fold_geometry(spec, tile.columns)
        arguments = Arguments(spec, [self._packed(spec, tile)])
        pad = padded_input(arguments, geometry) if pad_at != "none" else None
        axes = [te.reduce_axis((0, extent), name) for name, extent in zip(("jd", "jh", "jw"), geometry.kernel)]
        ic = te.reduce_axis((0, spec.in_channels), "ic")
        first = [padded - out for padded, out in zip(geometry.padded, geometry.out)]  # what tap 0 of u = 0 reads
        weight = arguments.weights[0]

        def summand(n: Any, d: Any, h: Any, wo: Any, block: Any, column: Any, vector: Any, lane: Any) -> Any:
            u = (d, h, wo * tile.columns + column)
            position = [p + start - j for p, start, j in zip(u, first, axes)]
            value = arguments.read_x(n, ic, position) if pad is None else pad(n, *position, ic)
            return te.sum(value * weight(block, *axes, ic, vector * tile.lanes + lane), axis=[*axes, ic])

        shape = (
            *geometry.out[:2],
            geometry.out[2] // tile.columns,
            tile.blocks,
            tile.columns,
            tile.vectors,
            tile.lanes,
        )
        acc = te.compute((spec.batch, *shape), summand, name="acc")
        sums = te.compute((spec.batch, *shape), lambda *i: acc[i], name="tile") if _stages(spec, tile) else acc
        places = Places(spec)

        def at(n: Any, d: Any, h: Any, w: Any, channel: Any) -> Any:
            value = sums(n, d, h, w // tile.columns, channel // tile.block, w % tile.columns, *_lanes(tile, channel))
            _, oc, *position = places.of(n, d, h, w, channel)
            return epilogue(arguments, value, n, oc, position)

        y = te.compute((spec.batch, *geometry.out, tile.blocks * tile.block), at, name="y")
        return arguments.primfunc(y)


class Places:
    """Where an index (n, ud, uh, uw, channel) of the stage `y` is in the output."""

    def __init__(self, spec: ConvSpec) -> None:
        self.spec, self.strides = spec, _strides(spec)
        self.sizes = cube(spec.out_size)
        self.cut = [first % s for first, s in zip(_before(spec), self.strides)]

    def _positions(self, u: Any, channel: Any) -> list[Any]:
        phase, phases = channel // self.spec.out_channels, []
        for stride in reversed(self.strides):
            phases.append(phase % stride if stride > 1 else 0)
            phase = phase // stride if stride > 1 else phase
        return [p * s + a - cut for p, s, a, cut in zip(u, self.strides, reversed(phases), self.cut)]

    def of(self, n: Any, d: Any, h: Any, w: Any, channel: Any) -> list[Any]:
        """As (n, oc, *position)."""
        return [n, channel % self.spec.out_channels, *self._positions((d, h, w), channel)[3 - self.spec.rank :]]

    def inside(self, n: Any, d: Any, h: Any, w: Any, channel: Any) -> list[Any]:
        """What must hold for it to be in the output; only what can fail."""
        out = fold_geometry(self.spec).out
        met = []
        for at, cut, u, stride, size in zip(
            self._positions((d, h, w), channel), self.cut, out, self.strides, self.sizes
        ):
            met += [at >= 0] if cut else []
            met += [at < size] if u * stride - cut > size else []
        full = self.spec.out_channels * count(self.strides)
        return [*met, w < out[2], channel < full]


def _strides(spec: ConvSpec) -> Dims:
    """The strides; an input of one element has any, and with the kernel's size every phase has one tap."""
    wide = [max(s, k) if size == 1 else s for s, k, size in zip(spec.stride, spec.kernel, spec.in_size)]
    return cube(wide)


def _before(spec: ConvSpec) -> Dims:
    return cube([before for before, _ in spec.padding], 0)


def _channels(spec: ConvSpec) -> int:
    """Output channels, of all phases."""
    return spec.out_channels * count(_strides(spec))


def fold_geometry(spec: ConvSpec, columns: int = 1) -> Geometry:
    """The dense convolution whose channels are the phases', its rows in whole tiles of columns."""
    strides, before, kernel = _strides(spec), _before(spec), cube(spec.kernel)
    skipped = [first // s for first, s in zip(before, strides)]  # u whose phases the padding takes away
    out = [ceil_div(size + first % s, s) for size, first, s in zip(cube(spec.out_size), before, strides)]
    out[2] = round_up(out[2], columns)
    taps = tuple(ceil_div(k, s) for k, s in zip(kernel, strides))
    zeros = tuple(max(0, t - 1 - first) for t, first in zip(taps, skipped))
    return Geometry(
        out=tuple(out),
        kernel=taps,
        stride=(1, 1, 1),
        dilation=(1, 1, 1),
        before=zeros,
        padded=tuple(u + first + zero for u, first, zero in zip(out, skipped, zeros)),
    )


def _lanes(tile: Tile, channel: Any) -> tuple[Any, Any]:
    return channel % tile.block // tile.lanes, channel % tile.lanes


def stored_lanes(spec: ConvSpec, tile: Tile) -> int:
    """Lanes of a vector that are stored at once: they lie side by side in the output, and all of them or none do."""
    if spec.out_channels % tile.lanes == 0:
        return tile.lanes
    *_, stride = _strides(spec)
    if _before(spec)[2] % stride or spec.out_size[-1] % stride or tile.run % tile.block:
        return 1
    part = math.gcd(stride * spec.out_channels, tile.lanes)
    return part if part >= FEWEST_STORED else 1


def _store_cycles(spec: ConvSpec, tile: Tile) -> float:
    """Of a vector of sums."""
    part = stored_lanes(spec, tile)
    if part == 1:
        return ELEMENT_CYCLES * tile.lanes
    parts = tile.lanes // part
    unrolled = parts == 1 or parts * tile.columns * tile.vectors <= MOST_UNROLLED
    return parts + (0 if unrolled else COPY_CYCLES)


def _stages(spec: ConvSpec, tile: Tile) -> bool:
    """Whether the store goes through a copy of the tile in memory, as in `tiling.needs_staging`."""
    return spec.activation in LONG_ACTIVATIONS or stored_lanes(spec, tile) < tile.lanes


transposed_lanes = TransposedLanes()
