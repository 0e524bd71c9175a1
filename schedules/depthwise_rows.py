"""Depthwise convolution, channels last: register tiles of rows x columns x vectors of channels, read from x itself.

    parallel task = (n, row block, column block [, channel chunk]):     oc_order: parallel
        for [channel chunk], od, oh_tile, ow_tile, channel block:       oc_order: outer
            acc[row, column, vector, lane] = 0                          in registers
            for kd, kh: (those whose input plane and row exist)
                for input column of the tile: (unrolled)
                    acc[every column that it serves] += x * weight[kd, kh, kw]
            y[...] = activation(acc + bias + residual)

An output that no cache can hold is stored past them (oc_order: outer_past), without reading its lines first.

Where the weights of all rows fit in registers, kh is unrolled too: each input row of the tile, if it exists, serves all
rows of outputs. Tiles at the left and right border have code of their own, without the taps that would read zeros. What
does not divide is covered by a last tile, or a last vector of channels, that begins earlier and computes some outputs
once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.axes import view_of
from convtune.schedules.depthwise_cost import cycles, suits
from convtune.schedules.depthwise_loops import Tiles
from convtune.schedules.depthwise_plan import Plan, has_one_filter_each, plan_of
from convtune.schedules.past_caches import PAST, can_pass
from convtune.schedules.tiling import ceil_div, even_blocks, power_of_two, spaced, task_parts
from convtune.schedules.written import Held, written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


WHOLE = 1 << 20  # all blocks of channels
MOST_VECTORS = 4  # of a tile, but of what is stored past the caches: more of them go by as one run
MOST_RUNS = 8  # that a tile stores past the caches


class DepthwiseRows(Estimating[CpuTarget]):
    name = "depthwise_rows"
    summary = "depthwise, channels last: tiles of rows and columns read x in place, borders have code of their own"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, CpuTarget) and has_one_filter_each(spec) and spec.channels_last

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        view = view_of(spec)
        lanes = _widths(spec, target)
        blocks = ceil_div(spec.out_channels, lanes[0])
        past = can_pass(spec, target)
        rows = view.rows.out
        wide = view.columns.out * spec.out_channels * 4 > target.l1d_bytes
        tiles = ceil_div(view.columns.out, 4)
        return {
            "lanes": lanes,
            "rows": tuple(count for count in (1, 2, 3, 4, 8) if count <= rows),
            "columns": spaced(even_blocks(view.columns.out, target.vector_registers * 3 // 4), 10),
            "vectors": tuple(count for count in (1, 2, 4, *([2 * MOST_VECTORS] if past else [])) if count <= blocks),
            "depth_blocks": spaced(even_blocks(view.depth.out, 2 * target.threads), 2),
            "row_blocks": spaced(task_parts(target, rows), 6),
            "column_blocks": spaced(task_parts(target, tiles if wide else 1), 4),
            "chunk": (*(count for count in (1, 2, 4) if count < blocks), WHOLE),
            "oc_order": ("outer", *(["parallel"] if blocks > 1 else []), *([f"outer{PAST}"] if past else [])),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan, registers = plan_of(spec, target, knobs), target.vector_registers
        if (
            plan.width > plan.channels
            or plan.rows > plan.view.rows.out // plan.row_blocks
            or plan.column_blocks > plan.tiles
        ):
            return False
        if not _suits_order(plan, int(knobs["chunk"])):
            return False
        if plan.split and (plan.chunks == 1 or plan.channels % plan.width):  # tasks would store some channels twice
            return False
        return suits(plan, registers, registers // 2)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        return cycles(plan_of(spec, target, knobs), target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, 1, taps) to (tap, oc)."""
        shape = plan_of(spec, target, knobs).weight_shape
        if len(shape) == 2:
            steps: list[PackStep] = [
                {"op": "reshape", "shape": [shape[1], shape[0]]},
                {"op": "transpose", "axes": [1, 0]},
            ]
        else:
            blocks, taps, width = shape
            steps = [{"op": "reshape", "shape": [blocks, width, taps]}, {"op": "transpose", "axes": [0, 2, 1]}]
        return (tuple(steps),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        return written(
            spec,
            plan.weight_shape,
            lambda buffers, y: Tiles(spec, plan, Held(spec, buffers), y).kernel(),
        )


def _suits_order(plan: Plan, chunk: int) -> bool:
    """Whether a tile is of the size that the order of the channels asks for."""
    if plan.past:
        return chunk == WHOLE and plan.rows * plan.columns <= MOST_RUNS
    return plan.vectors <= MOST_VECTORS


def _widths(spec: ConvSpec, target: CpuTarget) -> tuple[int, ...]:
    """Lanes of a vector: as many as there are channels at most, in powers of two."""
    most = min(target.lanes, power_of_two(spec.out_channels))
    half = most // 2
    return (most, half) if spec.out_channels % most and half and spec.out_channels % half == 0 else (most,)


depthwise_rows = DepthwiseRows()
