"""Grouped convolution, channels first, rows by minimal filtering; lanes are positions, which taps shift.

    parallel task = (n, a few groups, block of tiles of rows), for each group:
        for ic, tile, vector of columns: V[point, ic, line] = B^T x                             in the first caches
        for point, block of output channels, tile of positions along the line:
            acc[channel, vector, lane] = 0                                                      in registers
            for ic, kw:
                acc[channel, vector, :] += V[point, ic, vector + kw, :] * U[group, point, block, ic, kw, channel]
            M[point, channel, position] = acc
        for channel, tile, vector of columns: y[rows of the tile, column] = activation(A^T M + bias + residual)

The rows of V of all tiles of a task lie one after the other in one line, with the zeros around them in between, so that
vectors of positions go across their ends: few lanes are empty, and nothing is permuted or transposed. What lies between
two rows of outputs is computed and never read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
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
from convtune.schedules.filtered_planes_plan import worthwhile_tiles
from convtune.schedules.grouped_shifts_loops import Kernel
from convtune.schedules.grouped_shifts_plan import Plan, axis_of, plan_of
from convtune.schedules.tiling import FEWEST_LANES, LARGEST_BODY, ceil_div, even_blocks, spaced
from convtune.schedules.written import Held, written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_VECTORS = 7  # of a register tile
MOST_CHANNELS = 16
MOST_EDGES = 4  # tiles that read padding: each has code of its own
CROSSING = 1.5  # of a vector at any place in a row: most lie in two lines


class GroupedShifts(Estimating[CpuTarget]):
    name = "grouped_shifts"
    summary = "grouped, channels first: rows by F(m, r), taps of a row are shifts of lanes that are positions"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant != "grouped" or spec.channels_last or spec.rank != 2:
            return False
        if spec.stride != (1, 1) or spec.dilation[0] > 1 or min(spec.in_size[1], spec.out_size[1]) < FEWEST_LANES:
            return False
        return bool(_tiles(spec))

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        run, tiles = spec.out_channels // spec.groups, _tiles(spec)
        divisors = [size for size in range(1, min(run, MOST_CHANNELS) + 1) if run % size == 0]
        rows = {axis_of(spec, m).tiles for m in tiles}
        blocks = {ceil_div(of, size) for of in rows for size in even_blocks(of, of)}
        return {
            "m_tile": tiles,
            "channels": spaced(divisors, 4),
            "vectors": tuple(range(1, MOST_VECTORS + 1)),
            "row_blocks": spaced(blocks, 8),
            "units": tuple(size for size in (1, 2, 4, 8) if spec.groups % size == 0),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan, domain = plan_of(spec, target, knobs), self.knobs(spec, target)
        if plan.blocks != knobs["row_blocks"] or len(plan.edges) > MOST_EDGES:
            return False
        if plan.vectors * plan.lanes > plan.positions or 2 * plan.task_bytes > target.l2_bytes:
            return False
        sums, most = plan.outputs * plan.vectors, target.tile_registers - plan.vectors - 1
        if sums > most or sums * plan.columns.taps > LARGEST_BODY:
            return False
        longest = (plan.vectors + 1) * plan.lanes > plan.positions or plan.vectors == MOST_VECTORS
        return sums >= most // 2 or (plan.outputs == domain["channels"][-1] and longest)

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        plan = plan_of(spec, target, knobs)
        terms = plan.depth * plan.rows.taps * plan.columns.taps
        return rounding_error(spec, plan.filter.amplification, terms)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        moved = moved_bytes(spec) / target.threads
        into, outof = _transform_cycles(plan, target)
        taken = 4 * plan.block * plan.rows.alpha * plan.columns.size * plan.depth
        cycles = overlapped(into, stream_cycles(target, taken, moved) / 2)
        row_bytes = 4 * plan.rows.m * plan.columns.out
        given = write_cycles(target, plan.block * plan.run * row_bytes, row_bytes, 4 * count(spec.out_shape))
        cycles += overlapped(outof, given)
        sums = plan.outputs * plan.vectors
        steps = plan.depth * plan.columns.taps
        step = step_cycles(target, sums, plan.outputs + int(CROSSING * plan.vectors))
        products = plan.passes * plan.pieces * (steps * step + 2 * sums + TILE_CYCLES)
        line_bytes = 4 * (plan.passes * plan.depth * plan.line + plan.run * plan.out_line)
        cycles += plan.alpha * overlapped(products, stream_cycles(target, line_bytes, plan.task_bytes))
        zeros = plan.alpha * plan.depth * (plan.line - plan.lead - plan.block * plan.columns.size)
        return Tasks(plan.tasks, plan.span * cycles + store_cycles(target, zeros)).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, kh, kw) to (group, point, block, ic, kw, channel in block)."""
        plan = plan_of(spec, target, knobs)
        steps: tuple[PackStep, ...] = (
            {"op": "matmul", "axis": 2, "matrix": [list(map(float, row)) for row in plan.filter.g]},
            {
                "op": "reshape",
                "shape": [plan.groups, plan.passes, plan.outputs, plan.depth, plan.alpha, plan.columns.taps],
            },
            {"op": "transpose", "axes": [0, 4, 1, 3, 5, 2]},
        )
        return (steps,)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        return written(spec, plan.u_shape, lambda buffers, y: Kernel(spec, plan, Held(spec, buffers), y).kernel())


@functools.lru_cache(maxsize=1 << 10)
def _tiles(spec: ConvSpec) -> tuple[int, ...]:
    return worthwhile_tiles(lambda m: axis_of(spec, m))


def _transform_cycles(plan: Plan, target: CpuTarget) -> tuple[float, float]:
    """Of the inputs and the outputs of a task."""
    inputs, outputs = plan.filter.operations

    def cycles(loads: int, operations: int, stores: int, columns: int) -> float:
        one = load_cycles(target, CROSSING * loads) + fma_cycles(target, operations)
        vectors = sum(width for _, width in plan.vectors_of(columns)) / plan.lanes
        return plan.block * vectors * (one + store_cycles(target, CROSSING * stores))

    into = plan.depth * cycles(plan.alpha, inputs, plan.alpha, plan.columns.size)
    return into, plan.run * cycles(plan.alpha, outputs, plan.rows.m, plan.columns.out)


grouped_shifts = GroupedShifts()
