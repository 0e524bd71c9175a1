"""Deformable convolution on a GPU: a block samples what its tile of outputs needs into shared memory, then multiplies.

block = (n, outputs of an image, group, output channels):
    acc[position, oc] = 0                                                 in registers, a tile a thread
    for kh * kw, chunks of offset groups:
        for offset group, position of the block:                          a thread each
            index[q], weights[q] for its neighbours q, outside, scale     in shared memory
        for chunks of ic:
            col[ic, position] = scale * (outside ? 0 : sum over q of x[index[q], ic] * weights[q])
            filters[ic, oc] = weight[...]                                 both in shared memory
            for ic: acc[...] += col[ic, position] * filters[ic, oc]
    y[...] = activation(acc + bias + residual)

The threads that make `col` are side by side along the channels where these are last, else along the positions, whose
samples lie near each other. The last output is sampled in place of those beyond it; what is sampled is never in global
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_gathered_gemm import (
    GemmTile,
    Making,
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
from convtune.schedules.gpu_sampling import Entry, entry_at, sampling_tables
from convtune.schedules.gpu_tiling import bind_turns
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


SAMPLING = {  # of samples that are side by side along the positions, and along the channels
    False: Making(instructions=20, wavefronts=4 * len(CORNERS), prepared=200),
    True: Making(instructions=12, wavefronts=1 + len(CORNERS), prepared=200),
}


class GpuDeformable(Estimating[GpuTarget]):
    name = "gpu_deformable"
    dtypes = ("float32", "float16")
    summary = "a tile's samples in shared memory, then a register tile over them"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, GpuTarget) and spec.variant == "deformable"

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        return tile_knobs(spec)

    def allows(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> bool:
        tile = _tile(spec, knobs)
        return fits(target, tile, _shared_bytes(spec, tile))

    def estimate(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile = _tile(spec, knobs)
        return gemm_cycles(target, spec, spec, tile, _shared_bytes(spec, tile), SAMPLING[spec.channels_last])

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (pack_gemm(spec, _tile(spec, knobs)),)

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile = _tile(spec, knobs)
        sch = Schedule(_expression(spec, tile))
        loops = place_gemm(sch, spec, tile)
        for name in TABLES:
            if name == "scale" and not spec.modulated:
                continue
            table = sch.get_sblock(name)
            sch.set_scope(table, 0, "shared")
            sch.compute_at(table, loops.segments, preserve_unit_loops=True)
            *_, q, segment, position = sch.get_loops(table)
            sch.reorder(segment, position, q)
            bind_turns(sch, [segment, position], tile.threads)
            sch.unroll(q)
        if tile.vector > 1:
            sch.vectorize(sch.get_loops(sch.get_sblock("col"))[-1])
        merge_output(sch, spec)
        return sch.mod


TABLES = ("index", "weights", "outside", "scale")


def _tile(spec: ConvSpec, knobs: Knobs) -> GemmTile:
    assert spec.offset_groups is not None
    depth = spec.in_channels // spec.groups
    run = gcd(depth, spec.in_channels // spec.offset_groups)
    return gemm_tile(spec, depth // run, run, knobs)


def _shared_bytes(spec: ConvSpec, tile: GemmTile) -> int:
    tables = 2 * len(CORNERS) + 1 + bool(spec.modulated)
    return shared_bytes(tile) + 4 * tables * tile.together * tile.positions


def _expression(spec: ConvSpec, tile: GemmTile) -> Any:
    from tvm import tirx

    arguments = Arguments(spec, [packed_gemm(spec, tile)])
    index, weights, outside, *scale = _tables(arguments, tile)
    depth, width = spec.in_channels // spec.groups, spec.in_size[1]

    def sample(n: Any, g: Any, block: Any, tap: Any, so: Any, co: Any, s: Any, vector: Any, lane: Any, p: Any) -> Any:
        at = (n, g, block, tap, so)
        segment, first = so * tile.together + s, co * tile.chunk + vector * tile.vector
        channel = g * depth + segment * tile.run + first + lane
        places = [index(*at, q, s, p) for q in range(len(CORNERS))]
        value = interpolated(
            lambda q: widened(arguments.read_x(n, channel, (0, places[q] // width, places[q] % width))),
            [weights(*at, q, s, p) for q in range(len(CORNERS))],
            outside=tirx.const(False, "bool"),
        )
        # not a Select: TVM 0.27 makes CUDA C of one of vectors that nvcc refuses
        value = or_zero([outside(*at, 0, s, p) == 0], value)
        if scale:
            value = scale[0](*at, 0, s, p) * value
        inside = [first < tile.run] if tile.run % tile.chunk else []
        inside += [segment < tile.segments] if tile.segments % tile.together else []
        return or_zero(inside, value)

    return gathered_gemm(arguments, tile, sample)


def _tables(arguments: Arguments, tile: GemmTile) -> list[Any]:
    """The stages of TABLES: each (n, group, block, tap, chunk of segments, q, segment, position)."""
    from tvm import te, tirx

    spec = arguments.spec
    variant, last = _variant(spec), count(spec.out_size) - 1
    blocks, depth = ceil_div(count(spec.out_size), tile.positions), spec.in_channels // spec.groups
    outer = (spec.batch, spec.groups, blocks, count(spec.kernel), tile.outer[0])

    def table(name: str, entries: int, entry: Entry) -> Any:
        def at(n: Any, g: Any, block: Any, tap: Any, so: Any, q: Any, s: Any, p: Any) -> Any:
            segment = tirx.min(so * tile.together + s, tile.segments - 1)
            group = variant.offset_group(spec, g * depth + segment * tile.run)
            out = unflattened(spec, tirx.min(block * tile.positions + p, last))
            taps = (tap // spec.kernel[1], tap % spec.kernel[1])
            return entry_at(entry(n, group, out, taps), q)

        return te.compute((*outer, entries, tile.together, tile.positions), at, name=name)

    return sampling_tables(arguments, table)


def _variant(spec: ConvSpec) -> Deformable:
    variant = variants.primitive(spec)
    assert isinstance(variant, Deformable)
    return variant


gpu_deformable = GpuDeformable()
