"""Dense convolution, channels last, as direct sums over rows as they lie: for few channels, and half-filled vectors.

    parallel task = rows of outputs:
        for row, block of vectors: (of channels; the last also has what is left over)
            for tile of columns:
                acc[column, vector, lane] = 0                                       in registers
                rest[columns // share, lane] = 0                                    lanes: share x left-over channels
                for kd, kh: if they read inputs at this row:
                    for each run of kw that the same columns of the tile use:
                        for (kw, ic) of the run: (neighbours in memory: one loop)
                            acc[...] += x[row, column * stride + kw, ic] * weight[kd, kh, kw, ic, vector, lane]
                            rest[...] += blend(x of share columns) * weight[kd, kh, kw, ic, left over]
                y[row, column, channel] = activation(... + bias + residual)

It differs from `inside_taps`, whose tiles these are, in the loop, which for a row of three taps is three times as long,
and in that 24 channels are 1.5 vectors of 16 and not two. There is no padded copy of the input, which for few input
channels costs as much as some taps; the last tile of a row is as small as it needs to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.axes import view_of
from convtune.schedules.estimate import (
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    load_cycles,
    moved_bytes,
    overlapped,
    stream_cycles,
    waiting_factor,
    write_cycles,
)
from convtune.schedules.inside_taps import LOOP_CYCLES
from convtune.schedules.inside_taps_plan import input_rows
from convtune.schedules.pointwise_gemm import is_product
from convtune.schedules.pointwise_shared import MOST_WHOLE, share_of
from convtune.schedules.row_taps_loops import kernel
from convtune.schedules.row_taps_plan import Plan, plan_of
from convtune.schedules.tiling import LARGEST_CODE, MOST_VECTORS, even_blocks, round_up, spaced
from convtune.schedules.written import written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


class RowTaps(Estimating[CpuTarget]):
    name = "row_taps"
    summary = "direct sums over rows as they lie, channels last: few channels, and columns that share vectors"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or not spec.channels_last or spec.groups != 1:
            return False
        if spec.variant not in ("conv", "pointwise", "dilated") or is_product(spec):
            return False
        whole, left = divmod(spec.out_channels, target.lanes)
        # of more channels what is left over is a small part, and weights want to be read in parts
        weights = target.vector_bytes * (whole + 1) * spec.in_channels * count(spec.kernel)
        if whole > MOST_WHOLE or weights > target.l2_bytes / 2:
            return False
        return spec.in_channels < target.lanes or (left > 0 and share_of(left, target.lanes) > 1)

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        view, whole = view_of(spec), spec.out_channels // target.lanes
        share = plan_of(spec, target, {"columns": 1, "vectors": 1, "row_block": 1}).share
        most = target.tile_registers * share if not whole else target.tile_registers
        return {
            "columns": tuple(sorted({round_up(n, share) for n in even_blocks(view.columns.out, most)})),
            "vectors": tuple(range(1, min(MOST_VECTORS, max(whole, 1)) + 1)),
            "row_block": spaced(even_blocks(view.batch * view.depth.out * view.rows.out, 64), 6),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = plan_of(spec, target, knobs)
        columns = min(plan.columns, plan.view.columns.out)
        held = [plan.sums(block, columns) + len(block) + plan.ends(block) + plan.share for block in plan.blocks]
        if max(held) > target.tile_registers:
            return False
        written_out = sum(run.width for group in plan.tiles for run in group.taps)
        if written_out * plan.weight_vectors > LARGEST_CODE:
            return False
        # few sums hide no latency, but the row, or the registers with so many vectors, may allow no more
        fewest = min(target.tile_registers // 3, plan.sums(plan.blocks[0], plan.view.columns.out))
        return max(plan.sums(block, columns) for block in plan.blocks) >= fewest

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        view, weight_bytes = plan.view, 4 * count(plan.weight_shape)
        # rows of the kernel that read inputs at a row of outputs
        used = view.depth.all_valid * view.rows.all_valid / (view.depth.out * view.rows.out)
        row = 0.0
        for block in plan.blocks:
            tiles = sum(group.count for group in plan.tiles)
            products = used * self._row_cycles(target, plan, block) + self._store_cycles(plan, block, spec.residual)
            read = weight_bytes * used / (view.depth.taps * view.rows.taps) * len(block) / max(plan.whole, 1)
            row += overlapped(products, stream_cycles(target, read * tiles, weight_bytes))
        run_bytes = 4 * (plan.channels * plan.columns if len(plan.blocks) == 1 else plan.vectors * plan.lanes)
        row_bytes = 4 * plan.channels * view.columns.out
        row = overlapped(row, write_cycles(target, row_bytes, run_bytes, 4 * count(spec.out_shape)))
        read_rows = input_rows(view, plan.row_block) / plan.row_tasks
        inputs = 4 * read_rows * view.columns.size * plan.depth
        moved = moved_bytes(spec) // target.threads
        cycles = plan.rows / plan.row_tasks * row + 0.4 * stream_cycles(target, inputs, moved)
        return Tasks(plan.row_tasks, cycles).on(target)

    def _row_cycles(self, target: CpuTarget, plan: Plan, block: range) -> float:
        """Of one row of the kernel on a row of outputs."""
        ends, cycles = plan.ends(block), 0.0
        for group in plan.tiles:
            for run in group.taps:
                sums = plan.sums(block, run.width)
                blends = run.width - run.width // plan.share if ends and plan.share > 1 else 0
                # blends of four columns are a chain
                ports = sums * waiting_factor(target, sums) + blends * (0.5 + plan.share / 8)
                step = max(fma_cycles(target, ports), load_cycles(target, run.width + len(block) + ends))
                cycles += group.count * (run.count * plan.depth * step + LOOP_CYCLES)
        return cycles

    def _store_cycles(self, plan: Plan, block: range, residual: bool) -> float:
        """Of the outputs of a row, as many as they are vectors or parts of some."""
        stores = plan.view.columns.out * (len(block) + plan.ends(block))
        return (1 + residual) * stores + sum(group.count for group in plan.tiles) * TILE_CYCLES

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, kd, kh, kw) to (kd, kh, kw and ic, vector and lane)."""
        plan = plan_of(spec, target, knobs)
        depth, rows, columns = (axis.taps for axis in plan.view.axes)
        steps: tuple[PackStep, ...] = (
            {"op": "reshape", "shape": [plan.channels, plan.depth, depth, rows, columns]},
            {
                "op": "pad",
                "widths": [[0, plan.weight_vectors * plan.lanes - plan.channels], *([0, 0] for _ in range(4))],
            },
            {"op": "transpose", "axes": [2, 3, 4, 1, 0]},
            {"op": "reshape", "shape": list(plan.weight_shape)},
        )
        return (steps,)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        return written(spec, plan.weight_shape, lambda buffers, y: kernel(spec, plan, buffers, y))


row_taps = RowTaps()
