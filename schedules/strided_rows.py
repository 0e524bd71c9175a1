"""Channels-first convolution of few input channels: lanes are positions of a row, also where columns have a stride.

    parallel task = (n, od, block of rows of outputs):
        for ic, kd, row:                                                        pad: in the first caches
            line[column] = x, zeros around
            pad[ic, kd, row, residue, column] = line[column * stride + residue]  shuffles of vectors side by side
        for block of output channels, row:
            for tile of columns:                                                as pointwise_planes
                acc[channel, vector, lane] = 0                                  in registers
                for tap = (ic, kd, kh, kw):
                    acc[channel, vector, :] += pad[ic, kd, row * stride + kh, kw % stride, column + kw // stride]
                                               * weight[block, tap, channel]
                y[channel, position] = activation(acc + bias + residual)

It is for rows that do not fill vectors, and differs from `row_lanes` in that all vectors are stored from registers,
beside the multiply-adds of the next tile: the last one of a row ends with the row; and in that all taps of a row are
one body. Columns that read no zeros need no line: vectors of x are taken apart as they lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    TILE_CYCLES,
    Tasks,
    overlapped,
    step_cycles,
    store_cycles,
    stream_cycles,
    write_cycles,
)
from convtune.schedules.pointwise_planes_plan import fills_registers, tile_heights
from convtune.schedules.strided_rows_loops import Kernel
from convtune.schedules.strided_rows_plan import Plan, plan_of
from convtune.schedules.tiling import LARGEST_BODY, LINE_BYTES, MOST_VECTORS, ceil_div, even_blocks, spaced
from convtune.schedules.written import Buffers, viewed, written

from convtune.expression import cube
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.schedules.statements import Stmt

    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_ROWS = 16  # of a task
MOST_STRIDE = 4  # vectors that one is taken from
LINES_AT_ONCE = 3  # which are written while others are computed
ROW_CYCLES = 15.0  # to begin a row of inputs, and its copy


class StridedRows(Estimating[CpuTarget]):
    name = "strided_rows"
    summary = "few input channels, channels first: lanes are positions, columns by their residue modulo the stride"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.channels_last or spec.rank == 1:
            return False
        if spec.variant not in ("conv", "dilated") or spec.in_channels >= target.lanes:
            return False
        # rows of whole vectors are what row_lanes stores from registers too, and its tiles share inputs of several rows
        ragged = spec.out_size[-1] % target.lanes and spec.out_size[-1] > target.lanes
        return bool(ragged) and spec.stride[-1] <= MOST_STRIDE

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        return {
            "channels": tile_heights(spec.out_channels),
            "vectors": tuple(range(1, min(MOST_VECTORS, spec.out_size[-1] // target.lanes) + 1)),
            "rows": spaced(even_blocks(cube(spec.out_size)[1], MOST_ROWS), 8),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = plan_of(spec, target, knobs)
        if plan.products.outputs * plan.products.vectors * plan.axes[2].taps > LARGEST_BODY:
            return False
        if plan.products.width > plan.axes[2].out or plan.pad_bytes > target.l2_bytes // 2:
            return False
        return fills_registers(target, knobs, self.knobs(spec, target))

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        stride, lanes, depth = plan.axes[2].stride, target.lanes, plan.products.depth
        # a row of inputs: its copy; and of each vector of a residue a load, shuffles of all and a store
        moved = (1 + stride - 1 + store_cycles(target, 1)) * stride * plan.pitch / lanes
        line = ROW_CYCLES + 2 * ceil_div(plan.axes[2].read, lanes)
        fill = count(plan.pad_shape[:3]) * (line + moved)
        row = sum(
            tiles * self._tile(spec, target, plan, vectors)
            for vectors, tiles in ((plan.products.vectors, plan.products.whole_tiles), (plan.products.last_vectors, 1))
            if vectors
        )
        weights = 4 * depth * plan.products.outputs * plan.products.blocks
        stream = stream_cycles(target, weights, weights) / plan.rows
        cycles = fill + plan.rows * (plan.products.blocks * row + stream)
        return Tasks(count(plan.tasks), cycles).on(target)

    def _tile(self, spec: ConvSpec, target: CpuTarget, plan: Plan, vectors: int) -> float:
        """Cycles of a tile of so many vectors."""
        outputs, lanes, columns = plan.products.outputs, target.lanes, plan.axes[2]
        sums = outputs * vectors
        crossing = 1 + target.vector_bytes / LINE_BYTES if columns.span > columns.stride else 1
        step = step_cycles(target, sums, outputs + int(vectors * crossing))
        window = 4 * plan.products.depth * vectors * lanes
        stream = stream_cycles(target, window, plan.pad_bytes)
        writing = write_cycles(
            target, 4 * sums * lanes, 4 * plan.rows * plan.products.positions, 4 * count(spec.out_shape)
        )
        return overlapped(plan.products.depth * step + 2 * sums + TILE_CYCLES, stream + writing / LINES_AT_ONCE)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, taps) to (1, block, ic and taps, channel in block), zeros after the last."""
        return (plan_of(spec, target, knobs).products.packed(groups=1),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        products = plan.products
        image = (spec.batch, spec.in_channels, *cube(spec.in_size))

        def body(buffers: Buffers, y: Any) -> Stmt:
            return viewed([buffers[0]], image, lambda xs: Kernel(spec, plan, buffers, xs[0], y).statement())

        return written(spec, (1, products.blocks, products.depth, products.outputs), body)


strided_rows = StridedRows()
