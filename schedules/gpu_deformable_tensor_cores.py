"""Deformable convolution of float16 on Tensor Cores: a block samples its operand into shared memory, then multiplies.

block = (positions of all images, groups, output channels):
    acc[position, channel] = 0                                            float32, in registers, a tile a warp
    for kh, kw, segments of channels with the same offsets:
        for position of the block:                                        a thread each
            index[q], weights[q] for its neighbours q, outside, scale     in shared memory, float32
        for chunks of ic:
            tile[position, ic] = scale * (outside ? 0 : sum over q of x[index[q], ic] * weights[q])
            filters[channel, ic] = weight                                 both in shared memory, as float16
            for 16 of ic, for 16 positions and 8 channels of a warp's tile:
                acc[...] += tile[...] * filters[...]                      one instruction of the warp
    y[...] = activation(acc + bias + residual)

Samples are made in float32 and rounded to float16 once more than elsewhere. The last output is sampled in place of
those beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_implicit_gemm import unflattened
from convtune.schedules.gpu_sampling import Entry, entry_at, sampling_tables
from convtune.schedules.gpu_tiling import shared_scope
from convtune.schedules.gpu_warp_loops import finished, place_sums
from convtune.schedules.gpu_warp_tiles import (
    FEWEST_CHANNELS,
    LANES,
    Making,
    WarpTiles,
    estimate,
    expression,
    fits,
    has_tensor_cores,
    sizes,
    tile_knobs,
    up_to,
)
from convtune.schedules.tiling import ceil_div

from convtune import variants
from convtune.expression import Arguments, or_zero, widened
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets.gpu import GpuTarget
from convtune.variants.deformable import CORNERS, Deformable, interpolated

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

VECTOR = {False: 8, True: 4}  # channels of a sample that a thread makes, far apart in x, and side by side
SAMPLING = {  # of samples that are side by side along the positions, and along the channels
    False: Making(instructions=13, wavefronts=9, reads=len(CORNERS), waits=1.5),
    True: Making(instructions=11, wavefronts=2.5, reads=len(CORNERS), waits=1.5),
}
PREPARED = 200.0  # instructions for a position's entries of the tables


class GpuDeformableTensorCores(Estimating[GpuTarget]):
    name = "gpu_deformable_tensor_cores"
    dtypes = ("float16",)
    summary = "a tile's samples in shared memory, then float16 Tensor Cores over them"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return spec.variant == "deformable" and has_tensor_cores(spec, target) and _segment(spec) >= FEWEST_CHANNELS

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        return {**tile_knobs(spec), "depth": up_to((16, 32, 64), _segment(spec))}

    def allows(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> bool:
        tile = _tile(spec, knobs)
        return fits(target, tile, _shared_bytes(tile))

    def estimate(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, making = _tile(spec, knobs), SAMPLING[spec.channels_last]
        prepared = PREPARED / (tile.depth * tile.chunks[-1])
        making = replace(making, instructions=making.instructions + prepared)
        return estimate(target, tile, _shared_bytes(tile), making)

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (_pack(_tile(spec, knobs)),)

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile = _tile(spec, knobs)
        arguments, scope = Arguments(spec, [tile.packed]), shared_scope(_shared_bytes(tile))
        tables = _tables(arguments, tile)
        sch = Schedule(expression(tile, arguments, _sampled(tile, arguments, tables)))
        segment = sch.fuse(*place_sums(sch, tile, scope)[:-1])
        for table in tables:
            _share_table(sch, tile, sch.get_sblock(table.op.name), segment, scope)
        return finished(sch, tile, target)


def _segment(spec: ConvSpec) -> int:
    """Input channels of a group that have the same offsets."""
    assert spec.offset_groups is not None
    return gcd(spec.in_channels // spec.groups, spec.in_channels // spec.offset_groups)


def _tile(spec: ConvSpec, knobs: Knobs) -> WarpTiles:
    depth, run = int(knobs["depth"]), _segment(spec)
    vector = gcd(VECTOR[spec.channels_last], run)
    segments = spec.in_channels // spec.groups // run
    chunks = (*spec.kernel, segments, ceil_div(run, depth))
    return WarpTiles(spec, *sizes(knobs), chunks, gathered=vector if vector > 2 else 1)


def _shared_bytes(tile: WarpTiles) -> int:
    return tile.shared_bytes + 4 * (2 * len(CORNERS) + 1 + bool(tile.spec.modulated)) * tile.positions


def _pack(tile: WarpTiles) -> tuple[PackStep, ...]:
    """PyTorch's (oc, ic, kh, kw) to whole chunks, as a block reads them; zeros where channels end."""
    (_, groups, blocks), (*taps, segments, chunks), run = tile.grid, tile.chunks, _segment(tile.spec)
    missing_out, missing_in = blocks * tile.channels - tile.run, chunks * tile.depth - run
    return (
        {"op": "reshape", "shape": [groups, tile.run, segments, run, *taps]},
        {"op": "pad", "widths": [[0, 0], [0, missing_out], [0, 0], [0, missing_in], *[[0, 0]] * 2]},
        {"op": "reshape", "shape": [groups, blocks, tile.channels, segments, chunks, tile.depth, *taps]},
        {"op": "transpose", "axes": [0, 1, 6, 7, 3, 4, 2, 5]},
    )


def _sampled(tile: WarpTiles, arguments: Arguments, tables: Sequence[Any]) -> Any:
    """The stage `tile`: (block, group, kh, kw, segment, chunk, position of a block, input channel of a chunk)."""
    from tvm import te, tirx

    spec, width, run = tile.spec, tile.spec.in_size[1], _segment(tile.spec)
    index, weights, outside, *scale = tables

    def at(*place: Any) -> Any:
        (block, group, _, _, segment), (chunk, row, k) = place[:5], place[5:]
        within = chunk * tile.depth + k
        channel = group * (spec.in_channels // spec.groups) + segment * run + within
        n, _ = _output(tile, block, row)
        places = [index(*place[:5], q, row) for q in range(len(CORNERS))]
        value = interpolated(
            lambda q: widened(arguments.read_x(n, channel, (0, places[q] // width, places[q] % width))),
            [weights(*place[:5], q, row) for q in range(len(CORNERS))],
            outside=tirx.const(False, "bool"),
        )
        # not a Select: TVM 0.27 makes CUDA C of one of vectors that nvcc refuses
        value = or_zero([outside(*place[:5], 0, row) == 0], value)
        if scale:
            value = scale[0](*place[:5], 0, row) * value
        # in whole vectors, so that the condition is one for all of a vector
        inside = [within // tile.gathered < run // tile.gathered] if run % tile.depth else []
        return or_zero(inside, tirx.Cast(spec.dtype, value))

    shape = (*tile.grid[:2], *tile.chunks, tile.positions, tile.depth)
    return te.compute(shape, at, name="tile")


def _output(tile: WarpTiles, block: Any, row: Any) -> tuple[Any, tuple[Any, ...]]:
    """The image and the position of a row of the matrix product."""
    from tvm import tirx

    output = block * tile.positions + row
    return unflattened(tile.spec, tirx.min(output, tile.outputs - 1) if tile.outputs % tile.positions else output)


def _tables(arguments: Arguments, tile: WarpTiles) -> list[Any]:
    """Stages of what is the same for all channels of a segment: (block, group, kh, kw, segment, q, position)."""
    from tvm import te

    spec = arguments.spec
    variant, run_in, run = variants.primitive(spec), spec.in_channels // spec.groups, _segment(spec)
    assert isinstance(variant, Deformable)

    def table(name: str, entries: int, entry: Entry) -> Any:
        def at(block: Any, group: Any, kh: Any, kw: Any, segment: Any, q: Any, row: Any) -> Any:
            n, out = _output(tile, block, row)
            return entry_at(entry(n, variant.offset_group(spec, group * run_in + segment * run), out, (kh, kw)), q)

        return te.compute((*tile.grid[:2], *tile.chunks[:3], entries, tile.positions), at, name=name)

    return sampling_tables(arguments, table)


def _share_table(sch: Any, tile: WarpTiles, table: Any, segment: Any, scope: str) -> None:
    """Computes a table for a segment, a position a thread."""
    sch.set_scope(table, 0, scope)
    sch.compute_at(table, segment, preserve_unit_loops=True)
    q, position = sch.get_loops(table)[-2:]
    sch.reorder(position, q)
    _, *threads = sch.split(position, [None, count(tile.warps), *LANES])
    for loop, axis in zip(threads, "zyx"):
        sch.bind(loop, f"threadIdx.{axis}")
    sch.unroll(q)


gpu_deformable_tensor_cores = GpuDeformableTensorCores()
