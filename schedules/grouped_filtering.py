"""Grouped convolution by minimal filtering along rows or direct sums; lanes across small groups.

    parallel task = (n, a few units, block of rows):
        for row that the block reads, unit: V[unit, point, row, tile, ic, group] = B^T x          in the first caches
        for tile of rows:
            for unit, point, tile of columns:
                acc[row, tile, vector, lane] = 0                                                  in registers
                for ic:
                    for each row of V and tile: s[lane] = V of the lane's group
                        for (row, kh) that meet there:
                            acc[row, tile, vector, lane] += s[lane] * U[unit, point, ic, kh, vector, lane]
                M[unit, point, row, tile, lane] = acc
            y[...] = activation(A^T M + bias + residual)

A unit is one group, or as many as fill a vector: then its lanes are the first channels of all these groups, then the
second ones, and so on. V holds the same channel of all of them side by side, so that s is a load of 8 or 16 bytes that
are repeated, and one permute of a vector of x, and of y, does for all products with it. With `w_tile` 1 V is x, and its
columns meet all taps.

A row of V has zeros where it lies outside of x; taps that meet such rows are left out where a register tile has all
rows. With stride 2, what is filtered of three taps is the first and the last; products with the other are outputs
themselves, and have entries of V and M after those of the points. A task has several units where the channels of one
are few: then it reads and writes more of what lies on a page, and lines side by side are fetched ahead. This is how
channels last are; for channels first see `grouped_filtering_planes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    FMA_LATENCY,
    L2_BYTES_PER_CYCLE,
    RUN_CYCLES,
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    load_cycles,
    overlapped,
    rounding_error,
    store_cycles,
    stream_cycles,
)
from convtune.schedules.grouped_filtering_loops import Kernel
from convtune.schedules.grouped_filtering_plan import Plan, axes_of, plan_of
from convtune.schedules.grouped_filtering_planes import PlanesKernel
from convtune.schedules.tiling import LARGEST_BODY, ceil_div, even_blocks, spaced
from convtune.schedules.written import Held, written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

TILES = (2, 3, 4, 5, 6, 7)
MOST_ALPHA = 9
MOST_ROWS = 512  # of x that a plane's code reads, in vectors
TWO_PLANES_CYCLES = 3.5  # of a vector from planes of several groups, loads and permutes
# Where other tenants run on a machine, a task of 850 kB took 174 us at times and 390 at others, of 1 MB that the second
# cache has; one of half the groups 131 to 155.
OTHERS_SHARE = 0.3
SPREAD_FMAS = 0.3  # of an input that is spread: CPUs that do so where they multiply have some room beside
FETCHED_PER_CYCLE = 20.0  # bytes that come one after the other from the third cache


class GroupedFiltering(Estimating[CpuTarget]):
    name = "grouped_filtering"
    summary = "grouped: rows by F(m, r) or direct, columns channels first; lanes across small groups without permutes"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant != "grouped":
            return False
        if not spec.channels_last and (spec.rank < 2 or min(map(count, (spec.in_size, spec.out_size))) < target.lanes):
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
        units = spec.groups // max(1, target.lanes // (spec.out_channels // spec.groups))
        parts = [1, target.threads, *even_blocks(rows.out, 16)]
        return {
            "w_tile": _tiles(spec),
            "rows": tuple(size for size in (1, 2, 3, 4, 5, 6, 7, 8) if size <= rows.out),
            "tiles": tuple(size for size in (1, 2, 3, 4, 6, 8) if size <= columns.out),
            "vectors": tuple(size for size in (1, 2) if vectors % size == 0),
            "row_blocks": spaced((size for size in parts if size <= rows.out), 5) if spec.channels_last else (1,),
            "units": tuple(size for size in (1, 2, 4) if units % size == 0) if spec.channels_last else (1,),
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
        if plan.planes and plan.unrolled > MOST_ROWS:
            return False
        kept = plan.outputs * rows.out * columns.out if plan.planes else 0
        return 4 * (plan.span * columns.places * (plan.v_point + plan.m_point) + kept) <= target.l2_bytes / 2

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        plan = plan_of(spec, target, knobs)
        if plan.columns.filter is None:
            return 0.0
        terms = plan.depth * plan.rows.taps * plan.columns.parts
        return rounding_error(spec, plan.columns.filter.amplification, terms)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        rows, row_tiles = plan.rows.reached(plan.block), ceil_div(plan.block, plan.high)
        vectors = plan.v_value // plan.lanes if plan.planes else rows * ceil_div(plan.inputs, plan.lanes)
        made = vectors * plan.columns.groups * _input_cycles(plan, target)
        made += _squares_cycles(plan, target) if plan.planes else 0.0
        compute = made + row_tiles * (_product_cycles(plan, target) + _output_cycles(plan, target))
        u_bytes = 4 * prod(plan.u_shape[1:])
        v_bytes, m_bytes = 4 * plan.columns.places * plan.v_point, 4 * plan.columns.places * plan.m_point
        streamed = u_bytes / plan.blocks / _weights_bandwidth(spec, plan, target)
        held = u_bytes * plan.span
        streamed += (row_tiles - 1 / plan.blocks) * stream_cycles(target, u_bytes, held)
        # a line is read, then written, and evicts another; then it is read for the products
        streamed += 4 * stream_cycles(target, v_bytes, _held_bytes(plan, target, v_bytes + m_bytes))
        runs = 0 if plan.planes else rows * plan.columns.size + plan.block * plan.columns.out
        task = plan.span * overlapped(compute, streamed) + runs * RUN_CYCLES
        return Tasks(plan.batch * plan.spans * plan.blocks, task).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, kh, kw) to (unit, filter, pass, ic, kh and part, oc of a pass)."""
        plan = plan_of(spec, target, knobs)
        columns = plan.columns
        steps: list[PackStep] = [] if spec.channels_last else [{"op": "transpose", "axes": [0, 1, 3, 2]}]
        if columns.filter is not None:
            rows = spec.out_channels * plan.depth * plan.rows.taps
            steps.append({"op": "reshape", "shape": [rows, columns.taps]})
            steps.append({"op": "matmul", "axis": 1, "matrix": columns.weights})
        within = [plan.shared, plan.passes, plan.outputs // plan.shared // plan.passes]
        return (
            (
                *steps,
                {
                    "op": "reshape",
                    "shape": [plan.units, *within, plan.depth, plan.rows.taps, columns.filters, columns.side_by_side],
                },
                {"op": "transpose", "axes": [0, 6, 2, 4, 5, 7, 3, 1]},
                {"op": "reshape", "shape": list(plan.u_shape)},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        kernel = PlanesKernel if plan.planes else Kernel
        return written(spec, plan.u_shape, lambda buffers, y: kernel(spec, plan, Held(spec, buffers), y).kernel())


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


def _input_cycles(plan: Plan, target: CpuTarget) -> float:
    """Of a group of values of a row of V and a vector of channels: all their places."""
    columns = plan.columns
    operations = columns.filter.operations[0] if columns.filter else 0
    made = (columns.group - len(columns.plain)) * (fma_cycles(target, operations) + 2)
    values = sum(columns.inputs(part) for part in range(columns.group))
    if plan.shared == 1:
        return values + made
    return values * (fma_cycles(target, 2 * TWO_PLANES_CYCLES) if plan.planes else 1.5) + made


def _held_bytes(plan: Plan, target: CpuTarget, each: float) -> float:
    """V and M of a task, of so many bytes a unit, and where the first cache does not hold them what else the second one
    has: inputs and outputs of the task, and what is of others."""
    held = plan.span * each
    if plan.planes or held <= target.l1d_bytes / 2:
        return held
    read = plan.rows.reached(plan.block) * plan.columns.size * plan.inputs
    written = plan.block * plan.columns.out * plan.outputs
    return held + 4 * plan.span * (read + written) + OTHERS_SHARE * target.l2_bytes


def _squares_cycles(plan: Plan, target: CpuTarget) -> float:
    """Of the outputs of a unit that are transposed: loads, stores and permutes."""
    squares = ceil_div(plan.rows.out * plan.columns.out, plan.lanes) * plan.outputs // plan.lanes
    return squares * plan.lanes * (1 + store_cycles(target, 1) + fma_cycles(target, 2 * plan.lanes.bit_length() - 2))


def _output_cycles(plan: Plan, target: CpuTarget) -> float:
    """Of a row tile."""
    columns = plan.columns
    operations = columns.filter.operations[1] if columns.filter else 0
    one = columns.places / 2 + fma_cycles(target, operations) + 2
    one += columns.m * (1.0 if plan.shared == 1 or plan.planes else 1.5)
    return plan.high * columns.tiles * plan.outputs / plan.lanes * one


def _product_cycles(plan: Plan, target: CpuTarget) -> float:
    """Of a row tile."""
    columns = plan.columns
    sums = plan.high * plan.wide * plan.vectors
    met = [row for row in plan.rows.met(plan.high) if not plan.still or plan.rows.inside(row)]
    cycles = 0.0
    for places, parts in columns.products_of:
        reached = len({t * columns.step + columns.offset(k) for t in range(plan.wide) for k in parts})
        loads = reached * len(set(met)) + plan.rows.taps * len(parts) * plan.vectors
        fmas = max(sums, FMA_LATENCY * target.fmas_per_cycle) * len(met) * len(parts) // plan.high
        fmas += SPREAD_FMAS * reached * len(set(met))
        step = max(fma_cycles(target, fmas), FMA_LATENCY, load_cycles(target, loads))
        cycles += len(places) * (plan.depth * step + 2 * sums + TILE_CYCLES)
    return ceil_div(columns.tiles, plan.wide) * plan.passes * cycles


def _weights_bandwidth(spec: ConvSpec, plan: Plan, target: CpuTarget) -> float:
    """Bytes a cycle at which weights come, of which each thread reads its part in a call."""
    each = 4 * (prod(plan.u_shape) + count(spec.in_shape) + count(spec.out_shape)) / target.threads
    return L2_BYTES_PER_CYCLE if each <= target.l2_bytes else FETCHED_PER_CYCLE


grouped_filtering = GroupedFiltering()
