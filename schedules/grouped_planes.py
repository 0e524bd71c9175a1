"""Grouped convolution, channels first: vectors of positions, each of which serves all taps and several channels.

    parallel task = (n, part of the blocks of output channels, row block):
        for block of output channels, od, oh_tile, ow_tile:                 shape: rows
            acc[channel, row, vector, lane] = 0                             in registers
            for kd: (those whose input plane exists)
                for ic: (of the group)
                    for input row of the tile, if it exists:
                        for kw: s[lane] = x[ic, row, lane * stride + kw], a load or a permute of two; zero outside
                            for channel, and row of outputs and kh that meet there:
                                acc[channel, row, vector, :] += s * weight[channel, ic, kd, kh, kw]
            y[...] = activation(acc + bias + residual)

    a whole plane in place of the loops over oh_tile and ow_tile, its vectors of as many rows as fit:   shape: planes

The vectors are those of `depthwise_planes`, which see there; nothing is copied, neither inputs nor sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convtune.schedules.axes import view_of
from convtune.schedules.depthwise_cost import STREAM_BYTES_PER_CYCLE
from convtune.schedules.depthwise_planes_loops import Place, Planes
from convtune.schedules.depthwise_planes_plan import (
    PlanesPlan,
    lanes_of,
    plan_of,
    plane_loads,
    row_loads,
    shapes_of,
    suits,
)
from convtune.schedules.estimate import (
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    load_cycles,
    moved_bytes,
    overlapped,
    stays_cached,
    waiting_factor,
)
from convtune.schedules.ranges import ranged, valid_taps
from convtune.schedules.statements import Expr, Stmt, cleared, sequence, vector_sums
from convtune.schedules.tiling import LINE_BYTES, ceil_div, even_blocks, spaced, task_parts
from convtune.schedules.written import Held, written

from convtune import variants
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_CHANNELS = 8  # of a tile
ROW_CYCLES = 2.0  # the condition of an input row
LOOP_CYCLES = 2.0  # another input channel


class GroupedPlanes(Estimating[CpuTarget]):
    name = "grouped_planes"
    summary = "grouped, channels first: lanes are positions of a row, or of several short ones; nothing is copied"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return (
            isinstance(target, CpuTarget)
            and spec.variant in ("grouped", "shuffled_grouped")
            and not spec.channels_last
            and bool(shapes_of(spec, target))
        )

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        view, run, most = view_of(spec), spec.out_channels // spec.groups, _most_sums(target)
        pieces = ceil_div(view.columns.out, lanes_of(view, target, flat=False))
        channels = tuple(size for size in range(1, MOST_CHANNELS + 1) if run % size == 0)
        return {
            "shape": shapes_of(spec, target),
            "channels": channels,
            "rows": spaced(even_blocks(view.rows.out, most), 6),
            "vectors": spaced(even_blocks(pieces, most), 6),
            "parts": spaced(task_parts(target, spec.out_channels // channels[-1], halvings=5), 4),
            "row_blocks": spaced(task_parts(target, view.rows.out, halvings=5), 3),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan, domain = _plan(spec, target, knobs), self.knobs(spec, target)
        if plan.parts > plan.channels:
            return False
        return suits(plan, int(domain["vectors"][0]), _most_sums(target), int(domain["channels"][-1]))

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan, depth = _plan(spec, target, knobs), spec.in_channels // spec.groups
        view = plan.view
        planes = depth * view.depth.all_valid / view.depth.out
        plane = (_flat_plane if plan.flat else _plane_of_rows)(plan, target, planes)
        blocks = ceil_div(plan.channels, plan.parts)
        task = blocks * (view.depth.out * plane / plan.row_blocks + TILE_CYCLES)
        moved = moved_bytes(spec)
        tasks = view.batch * plan.parts * plan.row_blocks
        stream = 0.0 if stays_cached(target, moved) else moved / STREAM_BYTES_PER_CYCLE / tasks
        return Tasks(tasks, overlapped(task, stream)).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, taps) to (block of channels, kd, ic, kw, kh, channel)."""
        plan, depth = _plan(spec, target, knobs), spec.in_channels // spec.groups
        taps = [axis.taps for axis in plan.view.axes]
        steps: tuple[PackStep, ...] = (
            {"op": "reshape", "shape": [plan.channels, plan.outputs, depth, *taps]},
            {"op": "transpose", "axes": [0, 3, 2, 5, 4, 1]},
            {"op": "reshape", "shape": list(_weight_shape(spec, plan))},
        )
        return (steps,)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        return written(
            spec,
            _weight_shape(spec, plan),
            lambda buffers, y: Channels(spec, plan, Held(spec, buffers), y).kernel(),
        )


class Channels(Planes):
    """The statements of a plan, whose `channels` are blocks of output channels."""

    def _tile(self, at: Place, vectors: int, taps: Any, firsts: Sequence[Expr], stored: Sequence[int]) -> Stmt:
        from tvm import tirx

        plan, (n, block, d) = self.plan, at
        lanes, depth, inputs = plan.lanes, plan.view.depth, self.spec.in_channels // self.spec.groups
        run, oc = self.spec.out_channels // self.spec.groups, range(plan.outputs)
        group, within = block // (run // plan.outputs), block % (run // plan.outputs) * plan.outputs

        def channel(acc: Any, kd: Expr, ic: Expr) -> Stmt:
            source = n, group * inputs + ic, depth.first(d) + kd * depth.dilation

            def filters(kh: int, kw: int) -> list[Expr]:
                return [tirx.BufferLoad(self.weight, [block, kd * inputs + ic, kw, kh, i]) for i in oc]

            return self._parts(acc, source, vectors, filters, taps)

        def body(acc: Any) -> Stmt:
            planes = ranged(
                *valid_taps(depth, depth.first(d)),
                lambda kd: ranged(0, inputs, lambda ic: channel(acc, kd, ic), name="ic"),
                name="kd",
            )
            found, variant = [*cleared(acc, lanes), planes], variants.primitive(self.spec)
            for i in oc:
                place = n, variant.channel(self.spec, group, within + i), d
                found += self._store(acc[i * vectors : (i + 1) * vectors], place, firsts, stored)
            return sequence(found)

        return vector_sums(vectors * plan.outputs, lanes, body)


def _most_sums(target: CpuTarget) -> int:
    """As many as leave registers for weights and inputs; with half as many more LLVM spills, at twice the time."""
    return target.vector_registers // 2


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> PlanesPlan:
    outputs = int(knobs["channels"])
    return replace(plan_of(spec, target, knobs), channels=spec.out_channels // outputs, outputs=outputs)


def _weight_shape(spec: ConvSpec, plan: PlanesPlan) -> tuple[int, ...]:
    depth, rows, columns = (axis.taps for axis in plan.view.axes)
    return (plan.channels, depth * (spec.in_channels // spec.groups), columns, rows, plan.outputs)


def _flat_plane(plan: PlanesPlan, target: CpuTarget, planes: float) -> float:
    """Cycles of a plane of a block of channels in vectors of several rows, from so many planes of inputs."""
    return sum(
        planes * _bound(plan, target, *tile) + 2 * tile[-1] * plan.outputs + TILE_CYCLES for tile in plane_loads(plan)
    )


def _plane_of_rows(plan: PlanesPlan, target: CpuTarget, planes: float) -> float:
    """Cycles of a plane of a block of channels in pieces of rows, from so many planes of inputs."""
    rows = plan.view.rows
    fmas, loads, permutes, _ = row_loads(plan.view.columns, plan.lanes, plan.vectors)
    read = len(plan.row_reads()) * rows.all_valid / rows.out / rows.taps  # of a tile, less at the borders
    vectors = plan.rows * len(plan.offsets)
    counts = (fmas * plan.rows * rows.all_valid / rows.out / plan.tiles, loads * read / plan.tiles)
    step = _bound(plan, target, *counts, permutes * read / plan.tiles, vectors) + len(plan.row_reads()) * ROW_CYCLES
    stores = 2 * vectors * plan.outputs
    return ceil_div(rows.out, plan.rows) * plan.tiles * (planes * step + stores + TILE_CYCLES)


def _bound(plan: PlanesPlan, target: CpuTarget, fmas: float, loads: float, permutes: float, vectors: int) -> float:
    """Cycles of a tile and an input plane: FMAs of one channel, loads that cross lines mostly, permutes, weights."""
    rows, columns, sums = plan.view.rows.taps, plan.view.columns.taps, vectors * plan.outputs
    crossing = 1 + min(1.0, 4 * plan.lanes / LINE_BYTES)
    spare = max(0, plan.registers - sums - 3)
    weights = float(rows * columns * plan.outputs)
    if spare < rows * plan.outputs:  # those of a column do not stay in registers
        weights += fmas * plan.outputs * (1 - spare / (rows * plan.outputs))
    alone = fma_cycles(target, fmas * plan.outputs * waiting_factor(target, sums) + permutes)
    return max(alone, load_cycles(target, loads * crossing + weights)) + LOOP_CYCLES


grouped_planes = GroupedPlanes()
