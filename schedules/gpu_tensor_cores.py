"""Dense and grouped convolution of float16 on Tensor Cores, as a matrix product of tiles, any rank and layout.

block = (positions of all images, groups, output channels [, slice of the input channels]):
    acc[position, channel] = 0                                            float32, in registers, a tile a warp
    for chunks of (ic, kd, kh, kw):                                       pipeline: the next ones are on their way
        tile[position, ic] = x (zero outside)                             in shared memory, as float16
        filters[channel, ic] = weight                                     in shared memory
        for 16 of ic, for 16 positions and 8 channels of a warp's tile:
            acc[...] += tile[...] * filters[...]                          one instruction of the warp
    y[...] = activation(acc + bias + residual)

With several slices a block stores its sums in global memory, and a second kernel adds them up: for outputs too small to
keep a GPU busy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_implicit_gemm import STAGES, VARIANTS, unflattened
from convtune.schedules.gpu_tiling import shared_scope
from convtune.schedules.gpu_warp_loops import finished, place_sums
from convtune.schedules.gpu_warp_tiles import (
    WIDE,
    Making,
    WarpTiles,
    estimate,
    expression,
    fits,
    has_tensor_cores,
    sizes,
    tile_knobs,
)
from convtune.schedules.tiling import ceil_div

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, or_zero, zero_padded
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets.gpu import GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

WAITS = {"none": 1.0, "async2": 0.5, "async3": 0.2}


class GpuTensorCores(Estimating[GpuTarget]):
    name = "gpu_tensor_cores"
    dtypes = ("float16",)
    summary = "float16 on Tensor Cores, a block's operands in shared memory, a tile of sums in each warp's registers"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return spec.variant in VARIANTS and has_tensor_cores(spec, target)

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        pipelines = tuple(STAGES) if target.has_async_copy else ("none",)
        return {**tile_knobs(spec), "slices": (1, 2, 4, 8), "pipeline": pipelines}

    def allows(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> bool:
        tile, stages = _tile(spec, knobs), STAGES[str(knobs["pipeline"])]
        if count(tile.chunks) < stages or not _slices_pay(target, tile):
            return False
        return fits(target, tile, stages * tile.shared_bytes)

    def estimate(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, pipeline = _tile(spec, knobs), str(knobs["pipeline"])
        # where channels are far apart in x, each is loaded by itself
        instructions = 8 / tile.gathered + (0 if spec.channels_last else 2)
        making = Making(instructions, 0.5 if tile.gathered > 1 else 4.0, reads=1, waits=WAITS[pipeline])
        return estimate(target, tile, STAGES[pipeline] * tile.shared_bytes, making)

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (_pack(_tile(spec, knobs)),)

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile, stages = _tile(spec, knobs), STAGES[str(knobs["pipeline"])]
        arguments = Arguments(spec, [tile.packed])
        sch = Schedule(expression(tile, arguments, _gathered(tile, arguments)))
        chunk = sch.fuse(*place_sums(sch, tile, shared_scope(stages * tile.shared_bytes)))
        if stages > 1:
            sch.annotate(chunk, "software_pipeline_stage", [0, 0, stages - 1])
            sch.annotate(chunk, "software_pipeline_order", [0, 1, 2])
            sch.annotate(chunk, "software_pipeline_async_stages", [0])
        return finished(sch, tile, target)


def _slices_pay(target: GpuTarget, tile: WarpTiles) -> bool:
    """Whether the slices have a chunk each, and find SMs that would have no block."""
    if tile.slices == 1:
        return True
    blocks, run_in = count(tile.grid), tile.spec.in_channels // tile.spec.groups
    enough = run_in > (tile.slices - 1) * tile.chunks[0] * tile.depth
    return enough and blocks * tile.slices <= 4 * target.sms and 2 * blocks < 4 * target.sms


def _tile(spec: ConvSpec, knobs: Knobs) -> WarpTiles:
    depth, slices, run_in = int(knobs["depth"]), int(knobs["slices"]), spec.in_channels // spec.groups
    vector = gcd(WIDE, run_in)
    gathered = vector if vector > 2 else 1  # TVM 0.27 retypes an array that is only ever accessed by pairs
    chunks = (ceil_div(run_in, depth * slices), *cube(spec.kernel))
    return WarpTiles(spec, *sizes(knobs), chunks, gathered, slices)


def _pack(tile: WarpTiles) -> tuple[PackStep, ...]:
    """PyTorch's (oc, ic, taps) to whole chunks, as a block reads them; zeros where channels end."""
    (_, groups, blocks), (of_slice, *taps) = tile.grid, tile.chunks
    chunks = tile.slices * of_slice
    run_in = tile.spec.in_channels // groups
    missing_out, missing_in = blocks * tile.channels - tile.run, chunks * tile.depth - run_in
    return (
        {"op": "reshape", "shape": [groups, tile.run, run_in, *taps]},
        {"op": "pad", "widths": [[0, 0], [0, missing_out], [0, missing_in], *[[0, 0]] * 3]},
        {"op": "reshape", "shape": [groups, blocks, tile.channels, chunks, tile.depth, *taps]},
        {"op": "transpose", "axes": [0, 1, 3, 5, 6, 7, 2, 4]},
        {"op": "reshape", "shape": list(tile.packed)},
    )


def _gathered(tile: WarpTiles, arguments: Arguments) -> Any:
    """The stage `tile`: (block, group, *outer, position of a block, input channel of a chunk)."""
    from tvm import te, tirx

    spec, run_in = tile.spec, tile.spec.in_channels // tile.spec.groups
    variant, geometry, one = variants.primitive(spec), Geometry.of(spec), tirx.const(1.0, spec.dtype)

    def read(n: Any, ic: Any, position: Sequence[Any]) -> Any:
        return zero_padded(spec, geometry, arguments.read_x, n, ic, position)

    term = variant.term(spec, operands(geometry, read, lambda *_: one, widen=lambda value: value))

    def at(block: Any, group: Any, *index: Any) -> Any:
        *slice_, chunk, kd, kh, kw, row, k = index
        output = block * tile.positions + row
        n, position = unflattened(spec, output)
        oc = variant.channel(spec, group, 0)  # any channel of the group reads the same input
        channel = (chunk + (slice_[0] * tile.chunks[0] if slice_ else 0)) * tile.depth + k
        value = term.at(n, oc, position, (channel, *(kd, kh, kw)[3 - spec.rank :]))
        inside = [output < tile.outputs] if tile.outputs % tile.positions else []
        if tile.slices * tile.chunks[0] * tile.depth > run_in:
            # in whole vectors, so that the condition is one for all of a vector
            inside.append(channel // tile.gathered < run_in // tile.gathered)
        return or_zero(inside, value)

    shape = (*tile.grid[:2], *tile.outer, tile.positions, tile.depth)
    return te.compute(shape, at, name="tile")


gpu_tensor_cores = GpuTensorCores()
