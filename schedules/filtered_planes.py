"""Channels-first convolution filtered along one dimension, positions behind it as lanes: nothing is transposed.

    parallel task = (n, place in front, tile of the dimension, block of positions behind it):
        for ic, vector of the block: V[point, ic, position] = B^T x                             in the second cache
        for point, block of output channels, tile of positions:
            acc[channel, vector, lane] = 0                                                      in registers
            for ic: acc[channel, vector, :] += V[point, ic, vector, :] * U[point, block, ic, channel]
            M[point, channel, position] = acc                                                   over V of earlier points
        for channel, vector of the block: y[output of the tile, position] = activation(A^T M + bias + residual)

For kernels of one dimension that is not the innermost one, such as 3 x 1 x 1: what `minimal_filtering` would transpose
twice is then read and written as it lies, in runs of a block. The last block begins so early that it ends with the
positions: what it shares with the one before is computed twice.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    load_cycles,
    moved_bytes,
    overlapped,
    rounding_error,
    step_cycles,
    store_cycles,
    stream_cycles,
    write_cycles,
)
from convtune.schedules.filtered_planes_loops import Kernel
from convtune.schedules.filtered_planes_plan import axis_of, filtered_dimension, plan_of, worthwhile_tiles
from convtune.schedules.filtering_parts import READ_RUN_CYCLES, STORED_RUN_CYCLES
from convtune.schedules.pointwise_planes_plan import fills_registers, tile_heights
from convtune.schedules.tiling import even_blocks, spaced
from convtune.schedules.written import written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_VECTORS = 7  # of a register tile: planes of 28 x 28 are 49 of 16 lanes
LARGEST_BLOCK = 64  # vectors
MOST_EDGES = 4  # tiles that read padding: each has code of its own


class FilteredPlanes(Estimating[CpuTarget]):
    name = "filtered_planes"
    summary = "channels first, kernels of one outer dimension: F(m, r) along it, lanes are the positions behind it"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant != "conv" or spec.channels_last or spec.groups > 1:
            return False
        dimension = filtered_dimension(spec)
        if dimension is None or prod(spec.in_size[dimension + 1 :]) < target.lanes:
            return False
        return bool(_tiles(spec))

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        dimension = filtered_dimension(spec)
        assert dimension is not None
        vectors = prod(spec.in_size[dimension + 1 :]) // target.lanes
        return {
            "m_tile": _tiles(spec),
            "channels": tile_heights(spec.out_channels),
            "vectors": tuple(range(1, min(MOST_VECTORS, vectors) + 1)),
            "block": _blocks(vectors),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = plan_of(spec, target, knobs)
        if plan.vectors > plan.block or plan.task_bytes > target.l2_bytes or len(plan.edges) > MOST_EDGES:
            return False
        return fills_registers(target, knobs, self.knobs(spec, target))

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        plan = plan_of(spec, target, knobs)
        return rounding_error(spec, plan.filter.amplification, plan.depth * plan.axis.taps)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        vector_bytes = 4 * plan.lanes
        inputs, outputs = plan.filter.operations
        moved = moved_bytes(spec) / target.threads
        made = load_cycles(target, plan.alpha) + fma_cycles(target, inputs) + store_cycles(target, plan.alpha)
        runs = plan.alpha * plan.depth * READ_RUN_CYCLES
        read = stream_cycles(target, plan.alpha * plan.depth * plan.block * vector_bytes, moved) / 2
        cycles = overlapped(plan.depth * plan.block * made + runs, read)
        stored = load_cycles(target, plan.alpha) + fma_cycles(target, outputs) + store_cycles(target, plan.axis.m)
        run_bytes, all_bytes = plan.block * vector_bytes, 4 * count(spec.out_shape)
        written = write_cycles(target, plan.axis.m * plan.run * run_bytes, run_bytes, all_bytes)
        from_m = stream_cycles(target, plan.alpha * plan.run * run_bytes, plan.task_bytes)
        runs = plan.axis.m * plan.run * STORED_RUN_CYCLES
        cycles += overlapped(plan.run * plan.block * stored + runs + from_m, written)
        sums = plan.outputs * plan.vectors
        compute = plan.depth * step_cycles(target, sums, plan.outputs + plan.vectors) + 2 * sums + TILE_CYCLES
        weights = 4 * plan.depth * plan.outputs
        held = 4 * plan.alpha * plan.depth * plan.blocks * plan.outputs + plan.task_bytes
        from_v = stream_cycles(target, plan.depth * run_bytes, plan.task_bytes)
        streamed = plan.blocks * stream_cycles(target, weights, held) + from_v
        cycles += plan.alpha * overlapped(plan.blocks * plan.tiles * compute, streamed)
        return Tasks(plan.tasks, cycles).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, taps) to (point, block, ic, channel in block), zeros where channels end."""
        plan = plan_of(spec, target, knobs)
        full = plan.blocks * plan.outputs
        steps: tuple[PackStep, ...] = (
            {"op": "reshape", "shape": [plan.run, plan.depth, plan.axis.taps]},
            {"op": "matmul", "axis": 2, "matrix": [list(map(float, row)) for row in plan.filter.g]},
            {"op": "pad", "widths": [[0, full - plan.run], [0, 0], [0, 0]]},
            {"op": "reshape", "shape": [plan.blocks, plan.outputs, plan.depth, plan.alpha]},
            {"op": "transpose", "axes": [3, 0, 2, 1]},
        )
        return (steps,)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        return written(spec, plan.u_shape, lambda buffers, y: Kernel(spec, plan).statement(buffers, y))


@functools.lru_cache(maxsize=1 << 10)
def _tiles(spec: ConvSpec) -> tuple[int, ...]:
    return worthwhile_tiles(lambda m: axis_of(spec, m))


def _blocks(vectors: int) -> tuple[int, ...]:
    """Blocks of so many whole vectors worth trying."""
    most = min(vectors, LARGEST_BLOCK)
    divisors = (size for size in range(1, most + 1) if vectors % size == 0)
    return tuple(sorted({*spaced(divisors, 5), *spaced(even_blocks(vectors, most), 5)}))


filtered_planes = FilteredPlanes()
