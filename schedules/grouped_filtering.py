"""Grouped convolution, channels last, by minimal filtering along rows or direct sums; lanes across small groups.

    parallel task = (n, unit, block of rows):
        for row that the block reads: V[point, row, tile, ic, group] = B^T x, zeros around        in the first caches
        for tile of rows:
            for point, tile of columns:
                acc[row, tile, vector, lane] = 0                                                  in registers
                for ic:
                    for each row of V and tile: s[lane] = V of the lane's group
                        for (row, kh) that meet there:
                            acc[row, tile, vector, lane] += s[lane] * U[unit, point, ic, kh, vector, lane]
                M[point, row, tile, lane] = acc
            y[...] = activation(A^T M + bias + residual)

A unit is one group, or as many as fill a vector: then its lanes are the first channels of all these groups, then the
second ones, and so on. V holds the same channel of all of them side by side, so that s is a load of 8 or 16 bytes that
are repeated, and one permute of a vector of x, and of y, does for all products with it. With `w_tile` 1 V is x, and its
columns meet all taps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    FEWEST_SUMS,
    L2_BYTES_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    overlapped,
    step_cycles,
    stream_cycles,
)
from convtune.schedules.filtering_estimate import UNIT_ROUNDOFF
from convtune.schedules.filtering_tensors import Tensors
from convtune.schedules.grouped_filtering_loops import Kernel
from convtune.schedules.grouped_filtering_plan import Plan, axes_of, plan_of
from convtune.schedules.tiling import LARGEST_BODY, ceil_div, even_blocks, spaced
from convtune.schedules.written import written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

TILES = (2, 3, 4, 5, 6, 7)
MOST_ALPHA = 9
FETCHED_PER_CYCLE = 20.0  # bytes that come one after the other from the third cache


class GroupedFiltering(Estimating[CpuTarget]):
    name = "grouped_filtering"
    summary = "grouped, channels last: rows by F(m, r) or direct; lanes across small groups without permutes"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant != "grouped" or not spec.channels_last:
            return False
        if spec.rank > 2 or count(spec.kernel) == 1:
            return False
        run, depth = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        if run >= target.lanes:
            return run % target.lanes == 0
        shared = target.lanes // run
        whole = target.lanes % run == 0 and spec.groups % shared == 0
        return whole and run > 1 and shared * depth <= target.lanes

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        rows, columns = axes_of(spec, 1)
        vectors = max(1, spec.out_channels // spec.groups // target.lanes)
        parts = [1, target.threads, *even_blocks(rows.out, 16)]
        return {
            "w_tile": _tiles(spec),
            "rows": tuple(size for size in (1, 2, 3, 4, 5, 6, 7, 8) if size <= rows.out),
            "tiles": tuple(size for size in (1, 2, 3, 4, 6, 8) if size <= columns.out),
            "vectors": tuple(size for size in (1, 2) if vectors % size == 0),
            "row_blocks": spaced((size for size in parts if size <= rows.out), 5),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = plan_of(spec, target, knobs)
        rows, columns = plan.rows, plan.columns
        sums = plan.high * plan.wide * plan.vectors
        filters = plan.vectors * rows.taps * (columns.parts if columns.m == 1 else 1)
        if plan.wide > columns.tiles or plan.high > rows.out // plan.blocks:
            return False
        if sums + min(filters, 6) + 2 > target.tile_registers or sums < min(6, rows.out * columns.tiles):
            return False
        if sums * rows.taps * columns.parts > LARGEST_BODY:
            return False
        return 4 * plan.columns.alpha * (plan.v_point + plan.m_point) <= target.l2_bytes / 2

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        plan = plan_of(spec, target, knobs)
        if plan.columns.filter is None:
            return 0.0
        terms = plan.depth * plan.rows.taps * plan.columns.parts
        return UNIT_ROUNDOFF * plan.columns.filter.amplification * (2.0 + 0.4 * math.sqrt(terms))

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        rows, row_tiles = plan.rows.reached(plan.block), ceil_div(plan.block, plan.high)
        made = rows * plan.columns.length * ceil_div(plan.inputs, plan.lanes) * _input_cycles(plan)
        compute = made + row_tiles * (_product_cycles(plan) + _output_cycles(plan))
        u_bytes = 4 * prod(plan.u_shape[1:])
        v_bytes, m_bytes = 4 * plan.columns.alpha * plan.v_point, 4 * plan.columns.alpha * plan.m_point
        streamed = u_bytes / plan.blocks / _weights_bandwidth(spec, plan, target)
        streamed += (row_tiles - 1 / plan.blocks) * stream_cycles(target, u_bytes, u_bytes)
        # a line is read, then written, and evicts another; then it is read for the products
        streamed += 4 * stream_cycles(target, v_bytes, v_bytes + m_bytes)
        moved = 4 * (count(spec.in_shape) + count(spec.out_shape)) / target.threads
        cycles = Tasks(plan.batch * plan.units * plan.blocks, overlapped(compute, streamed)).on(target)
        # transforms wait for x and y: the products, which could hide that, come before or after them
        return cycles + moved / (L2_BYTES_PER_CYCLE if moved <= target.l2_bytes else FETCHED_PER_CYCLE)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, kh, kw) to (unit, point, pass, ic, kh and part, oc of a pass)."""
        plan = plan_of(spec, target, knobs)
        columns = plan.columns
        filtered = columns.filter is not None
        steps: list[PackStep] = [
            {"op": "reshape", "shape": [spec.out_channels * plan.depth * plan.rows.taps, columns.taps]},
            {"op": "pad", "widths": [[0, 0], [0, columns.parts * columns.r - columns.taps]]},
            # taps of a part are a stride apart
            {"op": "reshape", "shape": [spec.out_channels * plan.depth * plan.rows.taps, columns.r, columns.parts]},
        ]
        if filtered:
            assert columns.filter is not None
            matrix = [list(map(float, row)) for row in columns.filter.g]
            steps.append({"op": "matmul", "axis": 1, "matrix": matrix})
        within = [plan.shared, plan.passes, plan.outputs // plan.shared // plan.passes]
        return (
            (
                *steps,
                {
                    "op": "reshape",
                    "shape": [plan.units, *within, plan.depth, plan.rows.taps, columns.alpha, columns.parts],
                },
                {"op": "transpose", "axes": [0, 6, 2, 4, 5, 7, 3, 1]},
                {"op": "reshape", "shape": list(plan.u_shape)},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        return written(spec, plan.u_shape, lambda buffers, y: Kernel(spec, plan, Tensors(spec, buffers, y)).kernel())


def _tiles(spec: ConvSpec) -> tuple[int, ...]:
    """Sizes of tiles, 1 for direct sums: each needs fewer products than smaller ones do."""
    _, direct = axes_of(spec, 1)
    values, least = [1], direct.products
    if direct.dilation > 1 or direct.taps <= direct.stride:
        return (1,)
    for m in (m for m in TILES if m <= direct.out):
        _, axis = axes_of(spec, m)
        if axis.alpha <= MOST_ALPHA and axis.products < least:
            values, least = [*values, m], axis.products
    return tuple(values)


def _input_cycles(plan: Plan) -> float:
    """Of a value of a row of V and a vector of channels: all its points."""
    columns = plan.columns
    operations = columns.filter.operations[0] if columns.filter else 0
    return columns.alpha * (1.0 if plan.shared == 1 else 1.5) + operations / 2 + 2


def _output_cycles(plan: Plan) -> float:
    """Of a row tile."""
    columns = plan.columns
    operations = columns.filter.operations[1] if columns.filter else 0
    one = columns.alpha / 2 + operations / 2 + columns.m * (1.0 if plan.shared == 1 else 1.5) + 2
    return plan.high * columns.tiles * plan.outputs / plan.lanes * one


def _product_cycles(plan: Plan) -> float:
    """Of a row tile."""
    columns, taps = plan.columns, plan.rows.taps
    sums = plan.high * plan.wide * plan.vectors
    reached = len({t * columns.step + columns.offset(k) for t in range(plan.wide) for k in range(columns.parts)})
    down = len({r * plan.rows.stride + k * plan.rows.dilation for r in range(plan.high) for k in range(taps)})
    loads = reached * down + taps * columns.parts * plan.vectors
    step = step_cycles(max(sums, FEWEST_SUMS) * taps * columns.parts, loads)
    dense = columns.alpha - (columns.parts - columns.whole) / columns.parts
    tile = dense * plan.depth * step + columns.alpha * (2 * sums + TILE_CYCLES)
    return ceil_div(columns.tiles, plan.wide) * plan.passes * tile


def _weights_bandwidth(spec: ConvSpec, plan: Plan, target: CpuTarget) -> float:
    """Bytes a cycle at which weights come, of which each thread reads its part in a call."""
    each = 4 * (prod(plan.u_shape) + count(spec.in_shape) + count(spec.out_shape)) / target.threads
    return L2_BYTES_PER_CYCLE if each <= target.l2_bytes else FETCHED_PER_CYCLE


grouped_filtering = GroupedFiltering()
