"""Grouped convolution, channels first, stride 2, direct sums; lanes are positions, lines of a residue shifted by taps.

    parallel task = (n, group, block of rows):
        for ic, residue of rows and columns, row: line[ic, residue, row, column] = x            in the first caches
        for block of output channels:
            for tile of positions along the line:
                acc[channel, vector, lane] = 0                                                  in registers
                for ic, kh, kw:
                    acc[channel, vector, :] += line[ic, residue of the tap, vector + shift of the tap]
                                               * weight[group, block, ic, kh, kw, channel]
                sums[channel, position] = acc
            for channel, row, vector of columns: y[...] = activation(sums + bias + residual)

Inputs are taken apart by permutes once, for all taps and output channels. Rows lie one after the other, with the zeros
around them, so that vectors of positions go across their ends: few lanes are empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    load_cycles,
    moved_bytes,
    overlapped,
    step_cycles,
    store_cycles,
    stream_cycles,
    write_cycles,
)
from convtune.schedules.shifted_residues_loops import Kernel
from convtune.schedules.shifted_residues_plan import plan_of
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
CROSSING = 1.5  # of a vector at any place in a row: most lie in two lines


class ShiftedResidues(Estimating[CpuTarget]):
    name = "shifted_residues"
    summary = "grouped, channels first, stride 2: inputs are taken apart once for all taps, which are shifts of lanes"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant != "grouped" or spec.channels_last or spec.rank != 2:
            return False
        if spec.stride[1] != 2 or count(spec.kernel) == 1 or spec.out_size[1] < FEWEST_LANES:
            return False
        plan = plan_of(spec, target, {"channels": 1, "vectors": 1, "row_blocks": 1})
        return all(len(plan.inside(column)) >= FEWEST_LANES for _, column in plan.residues)

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        run, out = spec.out_channels // spec.groups, spec.out_size[0]
        blocks = {ceil_div(out, size) for size in even_blocks(out, out)}
        return {
            "channels": spaced([size for size in range(1, min(run, MOST_CHANNELS) + 1) if run % size == 0], 5),
            "vectors": tuple(range(1, MOST_VECTORS + 1)),
            "row_blocks": spaced(blocks, 8),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan, domain = plan_of(spec, target, knobs), self.knobs(spec, target)
        if plan.blocks != knobs["row_blocks"] or plan.vectors * plan.lanes > plan.positions:
            return False
        sums, most = plan.outputs * plan.vectors, target.tile_registers - plan.vectors - 1
        if sums > most or sums * len(plan.taps) > LARGEST_BODY or 2 * plan.held_bytes > target.l2_bytes:
            return False
        longest = (plan.vectors + 1) * plan.lanes > plan.positions or plan.vectors == MOST_VECTORS
        bounded = (sums + plan.outputs) * len(plan.taps) > LARGEST_BODY
        return sums >= most // 2 or bounded or (plan.outputs == domain["channels"][-1] and longest)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        vectors = plan.depth * len(plan.residues) * plan.reached * plan.pitch / plan.lanes
        moved = moved_bytes(spec) / target.threads
        made = vectors * (load_cycles(target, 2 * CROSSING) + fma_cycles(target, 1) + store_cycles(target, CROSSING))
        taken = 4 * plan.depth * plan.reached * plan.rows.stride * plan.columns.size
        cycles = overlapped(made, stream_cycles(target, taken, moved) / 2)
        sums = plan.outputs * plan.vectors
        step = step_cycles(target, sums, plan.outputs + int(CROSSING * plan.vectors))
        compute = plan.pieces * (plan.depth * len(plan.taps) * step + 2 * sums + TILE_CYCLES)
        cycles += plan.passes * overlapped(compute, stream_cycles(target, plan.held_bytes, plan.held_bytes))
        stored = plan.run * plan.block * plan.columns.out / plan.lanes
        plane_bytes = 4 * plan.block * plan.columns.out
        given = write_cycles(target, plan.run * plane_bytes, plane_bytes, 4 * count(spec.out_shape))
        cycles += overlapped(stored * (load_cycles(target, CROSSING) + store_cycles(target, CROSSING)), given)
        return Tasks(plan.tasks, cycles).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, kh, kw) to (group, block, ic, tap, channel in block)."""
        plan = plan_of(spec, target, knobs)
        steps: tuple[PackStep, ...] = (
            {"op": "reshape", "shape": [plan.groups, plan.passes, plan.outputs, plan.depth, len(plan.taps)]},
            {"op": "transpose", "axes": [0, 1, 3, 4, 2]},
        )
        return (steps,)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        return written(spec, plan.weight_shape, lambda buffers, y: Kernel(spec, plan, Held(spec, buffers), y).kernel())


shifted_residues = ShiftedResidues()
