"""Depthwise convolution, channels first: vectors of positions, of which each loaded one serves all rows that meet it.

    parallel task = (n, part of the channels, row block):
        for channel, od, oh_tile, ow_tile:                              shape: rows
            acc[row, vector, lane] = 0                                  in registers
            for kd: (those whose input plane exists)
                for input row of the tile, if it exists:
                    for kw: s[lane] = x[row, lane * stride + kw], a load or a permute of two; zero outside
                        for row of outputs and kh that meet there: acc[row, vector, :] += s * weight[kd, kh, kw]
            y[...] = activation(acc + bias + residual)

    a whole plane in place of the loops over oh_tile and ow_tile, its vectors of as many rows as fit:   shape: planes
    the same in narrower vectors, each of a row and what is left of a power of two:                     shape: padded
    a whole plane of several channels, whose columns take turns in vectors of a row, see `Woven`:       shape: woven

Rows that are no multiple of a vector end with a vector that begins earlier. Where a plane's vectors hold several rows,
lanes that are left are not computed: the next vector's store overwrites them, and the last one is filled from the one
before it. Tiles at the left and right border have code of their own, with zeros permuted in.

A vector of one row needs no permutes but at the ends of a plane, where loads would leave it: each column of the kernel
has loads of its own, whose lanes outside of the row are zeroed by units that do not multiply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convtune.schedules.axes import view_of
from convtune.schedules.depthwise_cost import STREAM_BYTES_PER_CYCLE
from convtune.schedules.depthwise_plan import has_one_filter_each
from convtune.schedules.depthwise_planes_loops import Planes
from convtune.schedules.depthwise_planes_plan import (
    PlanesPlan,
    lanes_of,
    plan_of,
    plane_loads,
    row_loads,
    shapes_of,
    suits,
)
from convtune.schedules.depthwise_woven import Woven, WovenPlan, group_cycles, weaves, woven_pack, woven_plan
from convtune.schedules.estimate import (
    FEWEST_SUMS,
    FMAS_PER_CYCLE,
    HIDDEN_LINES,
    L2_BYTES_PER_CYCLE,
    LOADS_PER_CYCLE,
    TILE_CYCLES,
    WRITTEN_BYTES_PER_CYCLE,
    Tasks,
    fma_cycles,
    load_cycles,
    moved_bytes,
    overlapped,
    stays_cached,
    waiting_factor,
)
from convtune.schedules.tiling import LINE_BYTES, ceil_div, even_blocks, spaced, task_parts
from convtune.schedules.written import Held, written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


SEVERAL_LINES = 0.05  # of that time more for each row of a tile, as memory is read ahead worse
ROW_CYCLES = 4.0  # the condition of an input row, and another line to begin


class DepthwisePlanes(Estimating[CpuTarget]):
    name = "depthwise_planes"
    summary = "depthwise, channels first: lanes are positions of a row, or of several short ones, of a plane or several"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return (
            isinstance(target, CpuTarget)
            and has_one_filter_each(spec)
            and not spec.channels_last
            and bool(_shapes(spec, target))
        )

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        view, most = view_of(spec), target.vector_registers * 3 // 4
        pieces = ceil_div(view.columns.out, lanes_of(view, target, flat=False))
        return {
            "shape": _shapes(spec, target),
            "rows": tuple(sorted({*spaced(even_blocks(view.rows.out, most), 8), min(3, view.rows.out)})),
            "vectors": spaced(even_blocks(pieces, most), 4),
            "parts": spaced(task_parts(target, spec.out_channels, halvings=5), 5),
            "row_blocks": spaced(task_parts(target, view.rows.out, halvings=5), 4),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        domain = self.knobs(spec, target)
        if knobs["shape"] == "woven":
            return all(knobs[name] == domain[name][0] for name in ("rows", "vectors", "row_blocks"))
        least, *_ = domain["vectors"]
        return suits(plan_of(spec, target, knobs), int(least), target.vector_registers * 3 // 4)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        view = plan.view
        depth, blocks = view.depth.all_valid / view.depth.out, plan.row_blocks
        if knobs["shape"] == "woven":
            woven = _woven(spec, target, knobs)
            blocks, rows = 1, woven.planes
            task = ceil_div(woven.groups, woven.parts) * (view.depth.out * group_cycles(woven, target) + TILE_CYCLES)
        else:
            plane, rows = (_flat_plane if plan.flat else _plane_of_rows)(plan, target, depth), plan.rows
            task = ceil_div(plan.channels, plan.parts) * (view.depth.out * plane / blocks + TILE_CYCLES)
        moved = moved_bytes(spec)
        lines = 1 + (0 if moved <= target.l3_bytes else SEVERAL_LINES * rows)
        bandwidth = L2_BYTES_PER_CYCLE if stays_cached(target, moved) else STREAM_BYTES_PER_CYCLE
        stream = moved / bandwidth * lines
        tasks = view.batch * plan.parts * blocks
        return Tasks(tasks, overlapped(task, stream / tasks)).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, 1, taps) to (oc, tap), or to what `woven_pack` says."""
        if knobs["shape"] == "woven":
            return (woven_pack(_woven(spec, target, knobs)),)
        return (({"op": "reshape", "shape": [spec.out_channels, count(spec.kernel)]},),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        if knobs["shape"] == "woven":
            woven = _woven(spec, target, knobs)
            return written(
                spec, woven.weight_shape, lambda buffers, y: Woven(spec, woven, Held(spec, buffers), y).kernel()
            )
        plan = plan_of(spec, target, knobs)
        return written(
            spec,
            (spec.out_channels, count(spec.kernel)),
            lambda buffers, y: Planes(spec, plan, Held(spec, buffers), y).kernel(),
        )


def _shapes(spec: ConvSpec, target: CpuTarget) -> tuple[str, ...]:
    """What vectors may hold."""
    return (*shapes_of(spec, target), *(["woven"] if weaves(spec, target) else []))


def _woven(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> WovenPlan:
    return woven_plan(spec, target, int(knobs["parts"]))


def _flat_plane(plan: PlanesPlan, target: CpuTarget, depth: float) -> float:
    """Cycles of a plane of the output in vectors of whole rows; no condition is between it and the next one."""
    tiles = plane_loads(plan)
    return sum(depth * _bound(plan, target, *tile) + 2 * tile[-1] for tile in tiles)


def _plane_of_rows(plan: PlanesPlan, target: CpuTarget, depth: float) -> float:
    """Cycles of a plane of the output in pieces of rows."""
    rows = plan.view.rows
    fmas, loads, permutes, _ = row_loads(plan.view.columns, plan.lanes, plan.vectors)
    tiles = ceil_div(rows.out, plan.rows)
    read = len(plan.row_reads()) * rows.all_valid / rows.out / rows.taps  # of a tile, less at the borders
    sums = plan.rows * len(plan.offsets)
    counts = (fmas * plan.rows * rows.all_valid / rows.out, loads * read, permutes * read)
    lines = plan.tiles * len(plan.row_reads()) * ROW_CYCLES
    again = 4 * len(plan.row_reads()) * plan.view.columns.size  # bytes that a row of tiles reads
    from_l2 = again / L2_BYTES_PER_CYCLE if again > target.l1d_bytes / 2 else 0.0
    compute = max(_bound(plan, target, *counts, sums) + lines, from_l2)
    # More lines than that are waited for in caches too: tiles of 21 of 16x112x112 took 23 to 27 us, of 16 20 to 23 (Zen
    # 4); not beside the multiply-adds of further planes: 64x15x75x315 took 24.3 ms in tiles of 21, 26.7 of 15.
    burst = max(0, sums - HIDDEN_LINES) * LINE_BYTES / WRITTEN_BYTES_PER_CYCLE * plan.tiles
    waited = max(0.0, burst - (depth - 1) * compute)
    return tiles * (depth * compute + waited + plan.tiles * (2 * sums + TILE_CYCLES))


def _bound(plan: PlanesPlan, target: CpuTarget, fmas: float, loads: float, permutes: float, sums: int) -> float:
    """Cycles of so many FMAs, loads that cross lines mostly, and permutes; of weights that stay in no register."""
    spare = max(0, target.vector_registers - sums - 3)
    weights = fmas * max(0.0, 1 - spare / plan.view.rows.taps)
    crossing = 1 + min(1.0, 4 * plan.lanes / LINE_BYTES)
    if not plan.flat:  # rows wait for their data first, as `FMAS_PER_CYCLE` says
        alone = fmas * max(1.0, FEWEST_SUMS / sums) / FMAS_PER_CYCLE
        return max(alone, (loads * crossing + weights) / LOADS_PER_CYCLE) + 0.5 * permutes
    units = replace(target, vector_bytes=4 * plan.lanes)  # that pass narrower vectors more quickly, on some CPUs
    alone = fma_cycles(units, fmas * waiting_factor(units, sums))
    return max(alone, load_cycles(units, loads * crossing + weights)) + fma_cycles(units, permutes)


depthwise_planes = DepthwisePlanes()
