"""Dense and grouped convolution of float16 on Tensor Cores, as a matrix product of tiles, any rank and layout.

block = (positions of all images, groups, output channels):
    acc[position, channel] = 0                                            float32, in registers, a tile a warp
    for chunks of (ic, kd, kh, kw):                                       pipeline: the next ones are on their way
        tile[position, ic] = x (zero outside)                             in shared memory, as float16
        filters[channel, ic] = weight                                     in shared memory
        for 16 of ic, for 16 positions and 8 channels of a warp's tile:
            acc[...] += tile[...] * filters[...]                          one instruction of the warp
    y[...] = activation(acc + bias + residual)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_implicit_gemm import unflattened
from convtune.schedules.gpu_tiling import shared_scope
from convtune.schedules.gpu_warp_tiles import (
    WIDE,
    WarpTiles,
    expression,
    finished,
    fits,
    has_tensor_cores,
    place_sums,
    share,
    sizes,
    tile_knobs,
    work,
)
from convtune.schedules.gpu_work import cycles
from convtune.schedules.tiling import ceil_div

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, or_zero, zero_padded
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets.gpu import GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

VARIANTS = ("conv", "pointwise", "dilated", "grouped", "shuffled_grouped")
STAGES = {"none": 1, "async2": 2, "async3": 3}
"""Of each pipeline, how many chunks are in shared memory at a time."""
WAITS = {"none": 1.0, "async2": 0.5, "async3": 0.2}


class GpuTensorCores(Estimating[GpuTarget]):
    name = "gpu_tensor_cores"
    dtypes = ("float16",)
    summary = "float16 on Tensor Cores, a block's operands in shared memory, a tile of sums in each warp's registers"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return spec.variant in VARIANTS and has_tensor_cores(spec, target)

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        return {**tile_knobs(spec), "pipeline": tuple(STAGES) if target.has_async_copy else ("none",)}

    def allows(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> bool:
        tile, stages = _tile(spec, knobs), STAGES[str(knobs["pipeline"])]
        return count(tile.chunks) >= stages and fits(target, tile, stages * tile.shared_bytes)

    def estimate(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, pipeline = _tile(spec, knobs), str(knobs["pipeline"])
        # a copy that goes across rows meets the same bank four times
        scattered = 0.5 if spec.channels_last else 4.0
        waits = WAITS[pipeline]
        return cycles(
            work(target, tile, STAGES[pipeline] * tile.shared_bytes, 8 / tile.gathered, scattered, waits), target
        )

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (_pack(_tile(spec, knobs)),)

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile, stages = _tile(spec, knobs), STAGES[str(knobs["pipeline"])]
        arguments = Arguments(spec, [tile.packed])
        sch = Schedule(expression(tile, arguments, _gathered(tile, arguments)))
        scope = shared_scope(stages * tile.shared_bytes)
        chunk, x = sch.fuse(*place_sums(sch, tile, scope)), sch.get_sblock("tile")
        sch.set_scope(x, 0, scope)
        share(sch, tile, x, chunk, tile.gathered)
        if stages > 1:
            sch.annotate(chunk, "software_pipeline_stage", [0, 0, stages - 1])
            sch.annotate(chunk, "software_pipeline_order", [0, 1, 2])
            sch.annotate(chunk, "software_pipeline_async_stages", [0])
        return finished(sch, tile)


def _tile(spec: ConvSpec, knobs: Knobs) -> WarpTiles:
    *blocks, depth = sizes(knobs)
    run_in = spec.in_channels // spec.groups
    vector = gcd(WIDE, run_in) if spec.channels_last else 1
    gathered = vector if vector > 2 else 1  # TVM 0.27 retypes an array that is only ever accessed by pairs
    return WarpTiles(spec, *blocks, depth, (ceil_div(run_in, depth), *cube(spec.kernel)), gathered)


def _pack(tile: WarpTiles) -> tuple[PackStep, ...]:
    """PyTorch's (oc, ic, taps) to whole chunks, as a block reads them; zeros where channels end."""
    (_, groups, blocks), (chunks, *taps) = tile.grid, tile.chunks
    run_in = tile.spec.in_channels // groups
    missing_out, missing_in = blocks * tile.channels - tile.run, chunks * tile.depth - run_in
    return (
        {"op": "reshape", "shape": [groups, tile.run, run_in, *taps]},
        {"op": "pad", "widths": [[0, 0], [0, missing_out], [0, missing_in], *[[0, 0]] * 3]},
        {"op": "reshape", "shape": [groups, blocks, tile.channels, chunks, tile.depth, *taps]},
        {"op": "transpose", "axes": [0, 1, 3, 5, 6, 7, 2, 4]},
    )


def _gathered(tile: WarpTiles, arguments: Arguments) -> Any:
    """The stage `tile`: (block, group, chunk, kd, kh, kw, position of a block, input channel of a chunk)."""
    from tvm import te, tirx

    spec, run_in = tile.spec, tile.spec.in_channels // tile.spec.groups
    variant, geometry, one = variants.primitive(spec), Geometry.of(spec), tirx.const(1.0, spec.dtype)

    def read(n: Any, ic: Any, position: Sequence[Any]) -> Any:
        return zero_padded(spec, geometry, arguments.read_x, n, ic, position)

    term = variant.term(spec, operands(geometry, read, lambda *_: one, widen=lambda value: value))

    def at(block: Any, group: Any, chunk: Any, kd: Any, kh: Any, kw: Any, row: Any, k: Any) -> Any:
        output = block * tile.positions + row
        n, position = unflattened(spec, output)
        oc = variant.channel(spec, group, 0)  # any channel of the group reads the same input
        value = term.at(n, oc, position, (chunk * tile.depth + k, *(kd, kh, kw)[3 - spec.rank :]))
        inside = [output < tile.outputs] if tile.outputs % tile.positions else []
        if run_in % tile.depth:  # in whole vectors, so that the condition is one for all of a vector
            vector = (chunk * tile.depth + k) // tile.gathered
            inside.append(vector < run_in // tile.gathered)
        return or_zero(inside, value)

    shape = (*tile.grid[:2], *tile.chunks, tile.positions, tile.depth)
    return te.compute(shape, at, name="tile")


gpu_tensor_cores = GpuTensorCores()
