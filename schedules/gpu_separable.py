"""Depthwise separable convolution on a GPU: a block's depthwise results are the left matrix of its pointwise GEMM.

block = (n, outputs of an image, output channels):
    acc[position, oc] = 0                                             in registers, a tile a thread
    for chunks of the channels between the stages:
        filters0[channel, taps], filters[channel, oc]                 in shared memory; filters0 of more than one tap
        for channel of the chunk, position of the block:              an element a thread
            acc0 = sum over kd, kh, kw of x (zero outside) * filters0[channel, taps]
            col[channel, position] = activation(acc0 + bias0)         in shared memory
        for channel: acc[...] += col[channel, position] * filters[channel, oc]
    y[...] = activation(acc + bias + residual)

What lies between the stages is made once for each block of output channels, and is never in global memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_gathered_gemm import (
    GemmTile,
    Making,
    col_shape,
    fits,
    gathered_gemm,
    gemm_cycles,
    gemm_tile,
    merge_output,
    pack_gemm,
    packed_gemm,
    place_gemm,
    shared_bytes,
    tile_knobs,
    unflattened,
)
from convtune.schedules.gpu_tiling import WIDE, share
from convtune.schedules.tiling import round_up

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, epilogue, operands, zero_padded
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets.gpu import GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

LARGEST_BODY = 128  # taps of a vector that are unrolled
TAP_INSTRUCTIONS = 5.0  # to see whether it is inside, load it and its weight


class GpuSeparable(Estimating[GpuTarget]):
    name = "gpu_separable"
    summary = "a depthwise separable convolution whose depthwise results stay in shared memory"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, GpuTarget) and spec.variant == "depthwise_separable" and spec.dtype == "float32"

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        return tile_knobs(spec.stages[-1])

    def allows(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> bool:
        tile = _tile(spec, knobs)
        return fits(target, tile, _shared_bytes(spec, tile))

    def estimate(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, (first, last) = _tile(spec, knobs), spec.stages
        taps = count(first.kernel)
        making = Making(taps * TAP_INSTRUCTIONS / tile.vector + 8, taps * (1 + 1 / tile.vector))
        return gemm_cycles(target, spec, last, tile, _shared_bytes(spec, tile), making)

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        tile, (first, last) = _tile(spec, knobs), spec.stages
        return _pack_filters(first, tile), pack_gemm(last, tile)

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile = _tile(spec, knobs)
        sch = Schedule(_expression(spec, tile))
        loops = place_gemm(sch, spec, tile)
        if tile.vector > 1:
            sch.unroll(sch.get_loops(sch.get_sblock("col"))[-1])
        acc = sch.get_sblock("acc0")
        sch.compute_at(acc, loops.element, preserve_unit_loops=True)
        if _shares_filters(spec):
            share(sch, sch.cache_read(acc, 1, "shared"), loops.chunk, 2, tile.threads, WIDE)
        sch.set_scope(acc, 0, "local")
        lane, position, *taps = sch.get_loops(acc)[-2 - 3 :]
        sch.reorder(position, *taps, lane)
        if tile.vector > 1:
            sch.vectorize(lane)
        if tile.vector * count(spec.kernel) <= LARGEST_BODY:
            for tap in taps:
                sch.unroll(tap)
        init = sch.decompose_reduction(acc, taps[0])
        if tile.vector > 1:
            sch.vectorize(sch.get_loops(init)[-1])
        merge_output(sch, spec)
        return sch.mod


def _tile(spec: ConvSpec, knobs: Knobs) -> GemmTile:
    return gemm_tile(spec.stages[-1], 1, spec.stages[-1].in_channels, knobs)


def _filters_shape(spec: ConvSpec, tile: GemmTile) -> tuple[int, int, int]:
    """(chunk, tap, channel of a chunk), or the last two the other way around: what a thread reads is side by side."""
    taps = count(spec.kernel)
    if spec.channels_last:
        return (tile.outer[1], taps, tile.chunk)
    return (tile.outer[1], tile.chunk, round_up(taps, WIDE))


def _pack_filters(first: ConvSpec, tile: GemmTile) -> tuple[PackStep, ...]:
    channels, taps, shape = first.out_channels, count(first.kernel), _filters_shape(first, tile)
    whole = taps if first.channels_last else shape[2]
    steps: tuple[PackStep, ...] = (
        {"op": "reshape", "shape": [channels, taps]},
        {"op": "pad", "widths": [[0, shape[0] * tile.chunk - channels], [0, whole - taps]]},
        {"op": "reshape", "shape": [shape[0], tile.chunk, whole]},
    )
    return (*steps, {"op": "transpose", "axes": [0, 2, 1]}) if first.channels_last else steps


def _shares_filters(spec: ConvSpec) -> bool:
    """Not those of one tap: where threads read the same elements as they write by their index, TVM 0.27 leaves out the
    barrier, although only some of the threads write."""
    return count(spec.kernel) > 1


def _shared_bytes(spec: ConvSpec, tile: GemmTile) -> int:
    filters = count(_filters_shape(spec.stages[0], tile)[1:]) if _shares_filters(spec) else 0
    return shared_bytes(tile) + 4 * filters


def _expression(spec: ConvSpec, tile: GemmTile) -> Any:
    from tvm import te, tirx

    first, last = spec.stages
    arguments = Arguments(spec, [_filters_shape(first, tile), packed_gemm(last, tile)])
    sums = te.compute(col_shape(last, tile), _depthwise(arguments, tile), name="acc0")

    def made(*index: Any) -> Any:
        n, co, vector, lane = index[0], index[5], index[7], index[8]
        channel = co * tile.chunk + vector * tile.vector
        within = _existing(spec, tile, channel) + lane
        value = epilogue(arguments, sums(*index), n, within, (), 0)
        return te.if_then_else(channel < tile.run, value, tirx.const(0.0, spec.dtype))

    return gathered_gemm(arguments, tile, made)


def _depthwise(arguments: Arguments, tile: GemmTile) -> Callable[..., Any]:
    """The sum of the depthwise stage at an index of `col`."""
    from tvm import te, tirx

    spec, first, filters = arguments.spec, arguments.spec.stages[0], arguments.weights[0]
    geometry, last = Geometry.of(first), count(first.out_size) - 1
    axes = [te.reduce_axis((0, extent), name) for name, extent in zip(("kd", "kh", "kw"), cube(first.kernel))]

    def inputs(n: Any, ic: Any, position: Sequence[Any]) -> Any:
        return zero_padded(first, geometry, arguments.read_x, n, ic, position)

    def at(*index: Any) -> Any:
        n, block, co, vector, lane, p = (index[i] for i in (0, 2, 5, 7, 8, 9))
        within = vector * tile.vector + lane
        channel = _existing(spec, tile, co * tile.chunk + vector * tile.vector) + lane
        position = unflattened(first, tirx.min(block * tile.positions + p, last))

        def weight(_oc: Any, _ic: Any, taps: Sequence[Any]) -> Any:
            tap = (taps[0] * cube(first.kernel)[1] + taps[1]) * cube(first.kernel)[2] + taps[2]
            return filters(co, tap, within) if first.channels_last else filters(co, within, tap)

        term = variants.primitive(first).term(first, operands(geometry, inputs, weight))
        return te.sum(term.at(n, channel, position, (0, *axes[3 - first.rank :])), axis=axes)

    return at


def _existing(spec: ConvSpec, tile: GemmTile, channel: Any) -> Any:
    """The first channel of a vector, or that of the last vector in place of those beyond it."""
    from tvm import tirx

    return tirx.min(channel, tile.run - tile.vector) if tile.run % tile.chunk else channel


gpu_separable = GpuSeparable()
