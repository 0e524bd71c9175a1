"""Deformable convolution, channels last, by Strassen's algorithm: seven multiplications for eight.

    parallel task = block of tiles:                                   a tile: 2 x columns outputs
        table of the tiles: places and weights, as in `deformable_gather`
        for part of the taps:                                         taps: row, one
            for tile, column, offset group, tap, chunk:
                samples of two outputs, in a half of the tile each, and of two channels, in a half of these
                V[factor, tile, tap and chunk, column, lane] = their sums, and they     in the second cache
            for block of a half of the output channels:
                for tile:
                    for step of 7:
                        acc[column, vector, lane] = 0, or a kept value, or what it is   in registers
                        for k: acc += V[step's factor, tile, k, column] * U[part, block, step, k, vector, lane]
                        keep acc, or total[a quarter] += acc          one part: y = activation(acc + bias + residual)
        y = activation(total + bias + residual)

Samples are never in memory but as V's. Tables and gather are those of `deformable_sampling`, products of `strassen`.
With `taps` twice each product is itself one by seven, as in `strassen`, of tiles of 4 x columns outputs:

        for part of the taps:
            samples[tile, chunk, column, block of blocks, lane]                             in the second cache
            for outer step of 7:
                V[factor, tile, tap and chunk, column, lane] = sums of sums of samples
                for block of a quarter of the output channels: as above, kept in the second cache, or total
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.deformable_gather import STEP_CYCLES, gather_cycles
from convtune.schedules.deformable_strassen_loops import Sampled
from convtune.schedules.deformable_strassen_plan import Plan
from convtune.schedules.deformable_strassen_twice_loops import SampledTwice
from convtune.schedules.estimate import (
    HELD_SHARE,
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    overlapped,
    store_cycles,
    stream_cycles,
    tile_step_cycles,
)
from convtune.schedules.strassen import ADDITIONS, FEWEST_DEPTH, LEVEL_AMPLIFICATION, half_columns, rounding
from convtune.schedules.strassen_packing import packed_sums
from convtune.schedules.strassen_plan import KEPT, PRODUCTS
from convtune.schedules.tiling import (
    LONG_ACTIVATIONS,
    MOST_VECTORS,
    ceil_div,
    round_up,
)
from convtune.schedules.written import Held, written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_TILES = 4  # of a task: with 8, 128 channels took 25.6 ms, where 4 took 21.5 and direct sums 23.5


class DeformableStrassen(Estimating[CpuTarget]):
    name = "deformable_strassen"
    summary = "samples of a block of outputs, channels last, by Strassen's algorithm: seven products for eight"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant != "deformable" or spec.groups > 1:
            return False
        plan = _plan(spec, target, {"columns": 1, "oc_vectors": 1, "tile_block": 1, "taps": "row"})
        halves = plan.missing < target.lanes < spec.out_channels and plan.positions > 1 and spec.in_channels % 2 == 0
        # half-filled vectors of samples take as long: of 8 offset groups of 8 channels it was 0.84 times as fast
        deep = plan.depth * plan.taps >= FEWEST_DEPTH and 2 * plan.wide > target.lanes
        return spec.channels_last and halves and deep

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        positions = spec.batch * count(spec.out_size)
        most = range(1, min(MOST_VECTORS, ceil_div(ceil_div(spec.out_channels, 2), target.lanes)) + 1)
        splits = (2, 4) if _halve_twice(spec, target) else (2,)
        columns = {c for v in most for c in half_columns(positions, target, v, splits)}
        tiles = range(1, min(MOST_TILES, ceil_div(positions, 2 * min(columns))) + 1)
        # of all taps at once LLVM 22 kept sums in memory for some tiles: 46 ms for 22, and rows were as fast elsewhere
        cuts: dict[int, KnobValue] = {count(spec.kernel): "one", spec.kernel[0]: "row"}
        taps = list(cuts.values())
        if _halve_twice(spec, target):
            taps += [f"{each}_twice" for each in taps]
        return {
            "columns": tuple(sorted(columns)),
            "oc_vectors": tuple(most),
            "tile_block": tuple(tiles),
            "taps": tuple(taps),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = _plan(spec, target, knobs)
        if plan.columns not in half_columns(plan.positions, target, plan.vectors, [plan.split]):
            return False
        if plan.cuts == plan.tile_block == 1:
            return False  # as LLVM does there
        if plan.levels > 1 and not plan.even:
            return False
        held = _held_bytes(plan) <= HELD_SHARE * target.l2_bytes
        return (held or plan.taps == plan.tile_block == 1) and plan.tile_block <= plan.tiles

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        plan = _plan(spec, target, knobs)
        return rounding(spec, spec.in_channels * count(spec.kernel)) * LEVEL_AMPLIFICATION ** (plan.levels - 1)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = _plan(spec, target, knobs)
        held_bytes, whole, outer_steps = _held_bytes(plan), 4 * prod(plan.u_shape), plan.products // PRODUCTS
        panel = 4 * PRODUCTS * plan.steps * plan.block
        # of a task of the thread that has the most
        tiles = ceil_div(plan.tiles, target.threads) / ceil_div(plan.tasks, target.threads)
        cycles = 0.0  # of an outer step
        for block in range(plan.blocks):
            of_block = plan.last_vectors if block == plan.blocks - 1 else plan.vectors
            sums = plan.columns * of_block
            step = tile_step_cycles(target, plan.columns, of_block) + STEP_CYCLES
            compute = PRODUCTS * (plan.steps * step + sums + TILE_CYCLES)
            compute += sums * store_cycles(target, len(KEPT) + 4 * (1 + spec.residual))
            if plan.cuts > 1:
                compute += sums * 4 * 2
            first = _arriving_cycles(target, panel, whole + held_bytes)
            again = stream_cycles(target, panel, panel + held_bytes)
            cycles += overlapped(compute, first) + (tiles - 1) * overlapped(compute, again)
        made = plan.tile * gather_cycles(spec, target, False) + plan.cuts * _sums_cycles(target, plan)
        return Tasks(plan.tasks, tiles * made + plan.cuts * outer_steps * cycles).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, taps) to (part of the taps and block, product, tap and ic of a half, channel of the
        block)."""
        plan = _plan(spec, target, knobs)
        return (tuple(packed_sums(plan, plan.cuts)),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        kernel = SampledTwice if plan.levels > 1 else Sampled
        return written(spec, plan.u_shape, lambda b, y: kernel(spec, plan, Held(spec, b), y).statement())


def _halve_twice(spec: ConvSpec, target: CpuTarget) -> bool:
    """Whether halves have halves that are worth it: whole vectors of channels on both sides, and deep ones."""
    plan = _plan(spec, target, {"columns": 1, "oc_vectors": 1, "tile_block": 1, "taps": "row_twice"})
    whole = plan.missing == 0 and spec.in_channels % plan.split == 0 and 2 * plan.wide > target.lanes
    return whole and plan.positions >= plan.split and plan.half * plan.taps >= FEWEST_DEPTH


def _held_bytes(plan: Plan) -> int:
    """Of V, and of the samples and what the outer of two levels keeps."""
    return 4 * (prod(plan.v_shape) + (prod(plan.samples_shape) + prod(plan.outer_shape) if plan.levels > 1 else 0))


def _arriving_cycles(target: CpuTarget, panel_bytes: float, resident_bytes: float) -> float:
    """Of weights that all tasks read, side by side: memory gives each line to one, the third cache to the others."""
    shared = stream_cycles(target, panel_bytes, resident_bytes) / target.threads
    return max(shared, stream_cycles(target, panel_bytes, min(resident_bytes, target.l3_bytes / 2)))


def _sums_cycles(target: CpuTarget, plan: Plan) -> float:
    """To make V of a tile and a part of the taps, and with two levels to keep samples and to read them again."""
    vectors = plan.columns * plan.steps / plan.wide
    stored = store_cycles(target, len(plan.stored)) + fma_cycles(target, ADDITIONS * plan.levels)
    if plan.levels == 1:
        return vectors * stored
    # 34 cycles on a Zen 4, of 256 channels at 50x84: 14 to store the seven
    stored += stream_cycles(target, len(plan.stored) * target.vector_bytes, _held_bytes(plan))
    return vectors * (plan.products // PRODUCTS * stored + store_cycles(target, 4**plan.levels))


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    columns, vectors, block = (int(knobs[name]) for name in ("columns", "oc_vectors", "tile_block"))
    positions, taps = spec.batch * count(spec.out_size), count(spec.kernel)
    together, _, twice = str(knobs["taps"]).partition("_")
    cuts, levels = {"row": spec.kernel[0], "one": taps}[together], 2 if twice else 1
    split = 2**levels
    tiles = ceil_div(positions, split * columns)
    weights = 4 * PRODUCTS**levels * spec.in_channels // split * spec.out_channels // split * taps
    assert spec.offset_groups is not None
    return Plan(
        positions=positions,
        depth=spec.in_channels,
        taps=taps // cuts,
        out_channels=spec.out_channels,
        columns=columns,
        vectors=vectors,
        lanes=target.lanes,
        tile_block=block,
        parts=1,
        copies=True,
        staged=spec.activation in LONG_ACTIVATIONS,
        tasks=min(tiles, round_up(ceil_div(tiles, block), target.threads)),
        cuts=cuts,
        piece=gcd(spec.in_channels // spec.offset_groups, ceil_div(spec.in_channels, split)),
        all_taps=spec.offset_groups * taps,
        weights_ahead=weights > target.l3_bytes // 4,
        levels=levels,
    )


deformable_strassen = DeformableStrassen()
