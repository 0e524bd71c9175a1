"""Dense convolution of channels-last layouts as a direct register tile that leaves out the taps on padding.

    parallel task = (oc_outer, rows) or (rows, oc_outer):                         sharing: weights, inputs
        for part of ic_block input channels, row of outputs, tile of the row:
            acc[column, oc_vector, lane] = 0, or sums[row, tile, ...] after the first part       in registers
            for kd, kh: if they read inputs at this row:
                for each run of kw that the same columns of the tile use, kw, ic:
                    acc[those columns] += x[row + kd + kh, column + kw, ic] * weight[oc_outer, part, kd, kh, kw, ic]
            sums[row, tile, ...] = acc, or after the last part y[...] = activation(acc + bias + residual)

Columns of a tile are written out, so that which of them a tap concerns costs nothing; tiles that use the same taps
share one code. There is no padded copy of the input. The last tile of a row and the last block of channels are as small
as they need to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.axes import view_of
from convtune.schedules.estimate import (
    L2_BYTES_PER_CYCLE,
    STREAMS,
    TILE_CYCLES,
    Tasks,
    moved_bytes,
    overlapped,
    stream_cycles,
    tile_step_cycles,
    write_cycles,
)
from convtune.schedules.inside_taps_loops import kernel
from convtune.schedules.inside_taps_plan import Plan, input_rows, plan_of, tiles_of
from convtune.schedules.tiling import (
    LARGEST_CODE,
    LINE_BYTES,
    MOST_VECTORS,
    ceil_div,
    columns_collide,
    even_blocks,
    reduction_blocks,
    spaced,
    suits_registers,
)
from convtune.schedules.written import written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

# Of a column in memory, so that prefetchers follow it: on a Zen 5 128 to 27 channels at 200x336 took 4.2 ms, and 3.6
# with the inputs copied first.
RUN_BYTES = 1024
LOOP_CYCLES = 10.0  # to begin a run of taps: addresses, and a branch that may be predicted wrong


class InsideTaps(Estimating[CpuTarget]):
    name = "inside_taps"
    summary = "register tile of output columns x channels that leaves out the taps on padding"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or not spec.channels_last or spec.groups != 1:
            return False
        axes = view_of(spec).axes
        return spec.variant in ("conv", "dilated") and any(axis.all_valid < axis.out * axis.taps for axis in axes)

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        view = view_of(spec)
        rows = view.batch * view.depth.out * view.rows.out
        vectors = ceil_div(spec.out_channels, target.lanes)
        return {
            "columns": even_blocks(view.columns.out, target.vector_registers - 2),
            "oc_vectors": tuple(range(1, min(MOST_VECTORS, vectors) + 1)),
            "row_block": spaced(even_blocks(rows, 64), 6),
            "ic_block": reduction_blocks(spec, target) or (spec.in_channels,),
            "sharing": ("weights", "inputs"),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        columns, vectors = int(knobs["columns"]), int(knobs["oc_vectors"])
        axis = view_of(spec).columns
        if not suits_registers(target, columns, vectors, axis.out):
            return False
        written_out = sum(taps.width for tiles in tiles_of(axis, columns) for taps in tiles.taps)
        return written_out * vectors <= LARGEST_CODE

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        whole = self._task_cycles(spec, target, plan, plan.vectors)
        last = self._task_cycles(spec, target, plan, plan.last_vectors)
        cycles = ((plan.blocks - 1) * whole + last) / plan.blocks
        return Tasks(plan.row_tasks * plan.blocks, cycles).on(target)

    def _task_cycles(self, spec: ConvSpec, target: CpuTarget, plan: Plan, vectors: int) -> float:
        """Of a task whose block of channels has so many vectors."""
        view = plan.view
        # rows of the kernel that read inputs at a row of outputs
        used = view.depth.all_valid * view.rows.all_valid / (view.depth.out * view.rows.out)
        tiles = sum(group.count for group in plan.tiles)
        sums = view.columns.out * vectors
        products = used * plan.ic_block * self._step_cycles(target, plan, vectors)
        products += (5 if plan.parts > 1 else 2) * sums + TILE_CYCLES * tiles
        block_bytes = vectors * target.vector_bytes
        stored = write_cycles(target, block_bytes * view.columns.out, block_bytes, 4 * count(spec.out_shape))
        row_bytes = used * view.columns.taps * plan.ic_block * block_bytes
        part_bytes = count(plan.taps) * plan.ic_block * block_bytes
        kept = plan.row_block * sums * target.vector_bytes if plan.parts > 1 else 0  # from part to part
        row = overlapped(products + stored / plan.parts, stream_cycles(target, row_bytes * tiles, part_bytes + kept))
        # weights come from further away to the first tile, which waits for some
        first = self._first_weights(target, plan, part_bytes)
        waits = max(0.0, first - row / tiles) / 2
        waits += self._arriving(spec, target, plan, part_bytes * plan.parts) / plan.parts
        if columns_collide(plan.depth * view.columns.stride, plan.columns):
            evicted = used * plan.ic_block * view.columns.all_valid * LINE_BYTES  # lines that are evicted while in use
            row += evicted / L2_BYTES_PER_CYCLE / 4
        return (plan.rows / plan.row_tasks * row + waits) * plan.parts

    def _first_weights(self, target: CpuTarget, plan: Plan, part_bytes: int) -> float:
        """Of the weights of a part, for the first tile of a task: from where all are, or the task before left them."""
        block_bytes = part_bytes * plan.parts
        first = stream_cycles(target, part_bytes, block_bytes * plan.blocks)
        if plan.sharing == "inputs":
            return first
        again = stream_cycles(target, part_bytes, block_bytes * target.threads)
        return (first + (plan.row_tasks - 1) * again) / plan.row_tasks

    def _arriving(self, spec: ConvSpec, target: CpuTarget, plan: Plan, weights_bytes: int) -> float:
        """What a task, whose weights have so many bytes, waits for its inputs, which come anew for each block."""
        inputs = 4 * input_rows(plan.view, plan.row_block) / plan.row_tasks * plan.view.columns.size * plan.depth
        # where the layer before left them; for further blocks, where what the tasks between leaves them
        left = moved_bytes(spec) // target.threads
        between = inputs * (plan.row_tasks if plan.sharing == "weights" else 1) + weights_bytes
        first, again = (stream_cycles(target, inputs, resident) for resident in (left, between))
        in_memory = 4 * count(spec.in_shape) > target.l3_bytes / 2
        followed = plan.columns <= STREAMS and (plan.ic_block * 4 >= RUN_BYTES or not in_memory)
        return (first + (plan.blocks - 1) * again) / plan.blocks * (0.4 if followed else 1.0)

    def _step_cycles(self, target: CpuTarget, plan: Plan, vectors: int) -> float:
        """Of one row of the kernel on a row of outputs, for one input channel."""
        return sum(
            group.count * taps.count * (tile_step_cycles(target, taps.width, vectors) + LOOP_CYCLES / plan.ic_block)
            for group in plan.tiles
            for taps in group.taps
        )

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        plan = plan_of(spec, target, knobs)
        steps: tuple[PackStep, ...] = (
            {"op": "reshape", "shape": [plan.channels, plan.depth, *plan.taps]},
            {"op": "pad", "widths": [[0, plan.blocks * plan.block - plan.channels], *([0, 0] for _ in range(4))]},
            {"op": "reshape", "shape": [plan.blocks, plan.block, plan.parts, plan.ic_block, *plan.taps]},
            {"op": "transpose", "axes": [0, 2, 4, 5, 6, 3, 1]},
        )
        return (steps,)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        return written(spec, plan.weight_shape, lambda buffers, y: kernel(spec, plan, buffers, y))


inside_taps = InsideTaps()
