"""Pointwise convolution, channels first: lanes are positions, whatever row they are in, and nothing is transposed.

    parallel task = (n, group, part of the blocks of output channels, block of positions):
        for block of output channels:
            for tile of the block of positions:
                fetch x of the next block of positions, some channels           where it is not in the second caches
                acc[channel, vector, lane] = 0                                  in registers
                for ic:
                    s[vector, lane] = x[ic, position]                           panel: none, or first block of channels
                    fetch x of channels ahead                                   the same, where planes displace others
                    panel[tile, ic, vector, lane] = s                           panel: copied, first block of channels
                    s[vector, lane] = panel[tile, ic, vector, lane]             panel: copied, other blocks of channels
                    acc[channel, vector, :] += s[vector, :] * weight[block, ic, channel]
                y[channel, position] = activation(acc + bias + residual)

A block of some hundred positions is long enough that each plane of the output is written line after line, since lines
of planes that lie a multiple of the caches' ways apart are few at a time. Planes of the input that do so displace each
other, so that other blocks of channels read what the first one left side by side. The last tile has as many vectors as
are left and ends where the positions do: what it shares with the one before is computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    L3_BYTES_PER_CYCLE,
    RUN_CYCLES,
    TILE_CYCLES,
    Tasks,
    moved_bytes,
    overlapped,
    stays_cached,
    step_cycles,
    stream_cycles,
    write_cycles,
)
from convtune.schedules.one_row import reads_own_place
from convtune.schedules.pointwise_planes_loops import Kernel
from convtune.schedules.pointwise_planes_plan import Plan, fills_registers, plan_of, tile_heights
from convtune.schedules.tiling import (
    LINE_BYTES,
    MOST_VECTORS,
    ceil_div,
    even_blocks,
    planes_collide,
    spaced,
)
from convtune.schedules.written import written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

LARGEST_BLOCK = 64  # vectors
# That could have been written while a thread turned to another plane: a C program wrote 54 planes in runs of 4 KiB in
# 203 us and of 256 bytes in 564, which is 2.8 times; by this it is 2.9.
RUN_BYTES = 600
LINES_AT_ONCE = 3  # which are written while others are computed


class PointwisePlanes(Estimating[CpuTarget]):
    name = "pointwise_planes"
    summary = "pointwise, channels first: lanes are positions; blocks of them long enough for each plane"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.channels_last:
            return False
        plain = spec.variant in ("conv", "pointwise", "grouped", "shuffled_grouped")
        return plain and reads_own_place(spec) and count(spec.out_size) >= target.lanes

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        positions, run = count(spec.out_size), spec.out_channels // spec.groups
        return {
            "channels": tile_heights(run),
            "vectors": tuple(range(1, min(MOST_VECTORS, positions // target.lanes) + 1)),
            "block": spaced(even_blocks(ceil_div(positions, target.lanes), LARGEST_BLOCK), 5),  # vectors
            "parts": (1, target.threads) if target.threads > 1 and run > 1 else (1,),
            "panel": ("none", "copied") if run > 1 else ("none",),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = plan_of(spec, target, knobs)
        if plan.parts > plan.blocks or plan.vectors > int(knobs["block"]):
            return False
        if knobs["panel"] == "copied" and (plan.blocks <= plan.parts or plan.panel_bytes > target.l2_bytes // 2):
            return False
        return fills_registers(target, knobs, self.knobs(spec, target))

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        blocks = ceil_div(plan.blocks, plan.parts)
        cycles = sum(
            (self._tile(spec, target, plan, vectors, False, blocks) * (blocks - 1)) * tiles
            + self._tile(spec, target, plan, vectors, True, blocks) * tiles
            for vectors, tiles in ((plan.vectors, plan.whole_tiles), (plan.last_vectors, 1))
            if vectors
        )
        tasks = spec.batch * spec.groups * plan.parts
        return Tasks(tasks * plan.position_blocks, cycles / plan.tiles * plan.tile_block).on(target)

    def _tile(self, spec: ConvSpec, target: CpuTarget, plan: Plan, vectors: int, first: bool, blocks: int) -> float:
        """Cycles of a tile of so many vectors: of the first block of channels, or another of so many."""
        sums, whole = plan.outputs * vectors, 4 * count(spec.out_shape)
        direct = first or not plan.copied
        crossing = 1 + target.vector_bytes / LINE_BYTES if direct and 4 * plan.positions % LINE_BYTES else 1
        window = 4 * plan.depth * vectors * plan.lanes
        weights = 4 * plan.depth * plan.outputs
        stream = stream_cycles(target, weights, weights * (blocks if plan.tile_block == 1 else 1))
        if first:
            moved = moved_bytes(spec) // target.threads
            stream += stream_cycles(target, window, moved) / 2  # fetched ahead
        elif direct and planes_collide(spec):
            stream += window / L3_BYTES_PER_CYCLE
        else:
            stream += stream_cycles(target, window, plan.panel_bytes)
        step = step_cycles(target, sums, plan.outputs + int(vectors * crossing))
        compute = plan.depth * step + 2 * sums + TILE_CYCLES
        if first and plan.copied:
            compute += plan.depth * vectors  # stores to the panel
        if first and planes_collide(spec):
            compute += plan.depth * RUN_CYCLES
        run_bytes = 4 * plan.block_positions
        writing = write_cycles(target, 4 * sums * plan.lanes, run_bytes, whole) * (1 + RUN_BYTES / run_bytes)
        return overlapped(compute, stream + writing / LINES_AT_ONCE)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, taps) to (group, block, ic, channel in block), zeros where a group ends."""
        return (plan_of(spec, target, knobs).packed(spec.groups),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        moved = moved_bytes(spec)
        ahead = not stays_cached(target, moved)
        shape = (spec.groups, plan.blocks, plan.depth, plan.outputs)
        return written(spec, shape, lambda buffers, y: Kernel(spec, plan, ahead, buffers, y).statement())


pointwise_planes = PointwisePlanes()
