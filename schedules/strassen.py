"""Pointwise convolution, or one of patches, channels last, by Strassen's algorithm: seven multiplications for eight.

    parallel task = block of tiles [, part of the channels]:                        a tile: 2 x columns positions
        for tile: V[column, k] = sums of x in halves of positions and channels   in the second cache
        for block of a half of the output channels:
            for tile:
                for step of 7:
                    acc[column, vector, lane] = 0, or a kept value, or what it is   in registers
                    for k: acc += V or x[step, column, k] * U[block, step, k, vector, lane]
                    keep acc, or y[a quarter] = activation(acc + bias + residual)   in the first cache

U are sums of weights, made when they are packed. k are the taps and input channels of a half. With `left` twice each
of the seven products is itself one by seven, of quarters; V is of one of them at a time:

    parallel task = tile [, part of the channels]:                                  a tile: 4 x columns positions
        for outer step of 7:
            V[column, k] = sums of sums of x
            for block of a quarter of the output channels:
                for step of 7: as above, but
                    acc, with what is kept in the second cache, is kept there, or y[a sixteenth]

An output that no cache can hold is stored past them (left: ..._past), without reading its lines first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    EXPOSED_SHARE,
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    overlapped,
    rounding_error,
    store_cycles,
    stream_cycles,
    tile_step_cycles,
    write_cycles,
)
from convtune.schedules.past_caches import is_past, read_first_cycles, with_past, without_past
from convtune.schedules.strassen_loops import Kernel
from convtune.schedules.strassen_packing import packed_sums
from convtune.schedules.strassen_plan import KEPT, PRODUCTS, Plan, as_it_lies, of_patches
from convtune.schedules.strassen_twice_loops import TwiceKernel
from convtune.schedules.tiling import (
    LINE,
    LONG_ACTIVATIONS,
    MOST_VECTORS,
    ceil_div,
    columns_collide,
    least_waste,
    most_columns,
    round_up,
)
from convtune.schedules.written import Held, written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

AMPLIFICATION = 3.0  # of the rounding errors of direct sums: 2 to 4 were measured
LEVEL_AMPLIFICATION = 2.0  # of the errors of one level, by another: 1.4 to 2.3 were measured
FEWEST_DEPTH = 64  # of the reduction: with less, the sums take longer than a product
FIRST: Knobs = {"columns": 1, "oc_vectors": 1, "tile_block": 1, "parts": 1, "left": "copies"}
# Vectors of a tile that is alone in its task: of more, LLVM 22 stores the sums in each step. Of 6 x 4 vectors, 256 to
# 128 channels at 56x56 took 1823 us, and 1206 with two tiles in a task; 5 x 4 and 7 x 3 have as many stores.
MOST_ALONE = 2
TILE_BLOCKS = 1, 2, 3, 4, 6, 8, 12, 16, 24, 32  # tiles of a task
ADDITIONS = 4  # of vectors, to V


class Strassen(Estimating[CpuTarget]):
    name = "strassen"
    summary = "pointwise or of patches, channels last, by Strassen's algorithm: seven products for eight"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.groups > 1 or not spec.channels_last or not of_patches(spec):
            return False
        plan = _plan(spec, target, FIRST)
        halves = plan.missing < target.lanes < plan.out_channels and plan.positions > 1 and spec.in_channels > 1
        straddling = spec.variant == "transposed" and spec.out_channels % target.lanes
        return halves and not straddling and plan.depth * plan.taps >= FEWEST_DEPTH

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        whole = _plan(spec, target, FIRST)
        positions, most = whole.positions, range(1, min(MOST_VECTORS, whole.channels // target.lanes) + 1)
        in_place = as_it_lies(spec) and spec.in_channels % 2 == 0
        ways = *(("sums",) if in_place else ()), "copies", *(("twice",) if _halve_twice(spec, target) else ())
        parts = sorted({_plan(spec, target, {**FIRST, "left": each}).split for each in ways})
        columns = {c for v in most for c in half_columns(positions, target, v, parts)}
        return {
            "columns": tuple(sorted(columns)),
            "oc_vectors": tuple(most),
            "tile_block": tuple(n for n in TILE_BLOCKS if n <= ceil_div(positions, 2 * min(columns))),
            "parts": (1, target.threads) if target.threads > 1 else (1,),
            "left": with_past(spec, target, ways),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = _plan(spec, target, knobs)
        if plan.columns not in half_columns(plan.positions, target, plan.vectors, [plan.split]):
            return False
        if plan.past and not (plan.even and plan.block % LINE == 0):  # a tile stores whole lines
            return False
        if plan.blocks < plan.parts or (not plan.copies and columns_collide(plan.depth, plan.columns)):
            return False
        if plan.levels > 1:
            # of blocks of two kinds TVM 0.27 and LLVM 22 took 20 s, and several tiles were 0.89 to 0.97 times as fast
            return plan.even and plan.tile_block == 1
        if plan.tile_block == 1:
            return plan.vectors <= MOST_ALONE
        return 4 * math.prod(plan.v_shape) <= target.l2_bytes and plan.tile_block <= plan.tiles

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        plan = _plan(spec, target, knobs)
        return rounding(spec, plan.depth * plan.taps) * LEVEL_AMPLIFICATION ** (plan.levels - 1)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = _plan(spec, target, knobs)
        held_bytes, lines = _held_bytes(plan), plan.taps * ceil_div(plan.half, plan.lanes)
        of_line = store_cycles(target, len(plan.stored)) + fma_cycles(target, ADDITIONS * plan.levels)
        of_line += 3 * stream_cycles(target, len(plan.stored) * target.vector_bytes, held_bytes)
        moved = 4 * (count(spec.in_shape) + count(spec.out_shape))
        arriving = stream_cycles(target, 4 * plan.tile * plan.taps * plan.depth, moved // target.threads)
        panel = 4 * PRODUCTS * plan.steps * plan.block
        whole = 4 * math.prod(plan.u_shape)
        cycles = plan.tile_block * plan.columns * lines * of_line  # of an outer step
        for block in range(ceil_div(plan.blocks, plan.parts)):  # of the part that has the most
            vectors = plan.last_vectors if block == plan.blocks - 1 else plan.vectors
            sums = plan.columns * vectors
            compute = PRODUCTS * (plan.steps * tile_step_cycles(target, plan.columns, vectors) + sums + TILE_CYCLES)
            compute += sums * (store_cycles(target, len(KEPT) + 4 * (1 + spec.residual)))
            first = stream_cycles(target, panel, whole + held_bytes)
            again = stream_cycles(target, panel + held_bytes / plan.tile_block, panel + held_bytes)
            cycles += overlapped(compute, first) + (plan.tile_block - 1) * overlapped(compute, again)
        cycles = cycles * (plan.products // PRODUCTS) + plan.tile_block * arriving * EXPOSED_SHARE
        tasks = plan.tile_blocks * plan.parts
        written_bytes = 4 * count(spec.out_shape)
        cycles = overlapped(cycles, write_cycles(target, written_bytes / tasks, 4 * plan.block, written_bytes))
        return Tasks(tasks, cycles).on(target) + read_first_cycles(spec, target, plan.past)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, taps) or (ic, oc, taps) to (block, step, tap and ic of a half, channel of the block)."""
        plan = _plan(spec, target, knobs)
        steps: list[PackStep] = []
        if spec.variant == "transposed":
            steps += [
                {"op": "reshape", "shape": [spec.in_channels, spec.out_channels, count(spec.kernel)]},
                {"op": "transpose", "axes": [2, 1, 0]},
            ]
        return ((*steps, *packed_sums(plan)),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        kernel = TwiceKernel if plan.levels > 1 else Kernel
        return written(spec, plan.u_shape, lambda b, y: kernel(spec, plan, Held(spec, b), y).statement())


def rounding(spec: ConvSpec, terms: int) -> float:
    """The error to expect of sums of so many products, as `expected_error` has it."""
    return rounding_error(spec, AMPLIFICATION, terms)


def half_columns(positions: int, target: CpuTarget, vectors: int, splits: Sequence[int] = (2,)) -> tuple[int, ...]:
    """Positions of a half of a tile worth trying: what the registers hold, less where less is computed twice.

    splits: of how many of them a tile may be.
    """
    found: set[int] = set()
    for split in splits:
        most = min(positions // split, most_columns(target, vectors))
        found |= set(least_waste({c: round_up(positions, split * c) for c in range(max(1, most // 2), most + 1)}))
    return tuple(sorted(found))


def _halve_twice(spec: ConvSpec, target: CpuTarget) -> bool:
    """Whether halves have halves that are worth it: deep ones, and of whole vectors of output channels."""
    plan = _plan(spec, target, {**FIRST, "left": "twice"})
    return plan.missing == 0 and plan.positions >= plan.split and plan.whole * plan.taps >= FEWEST_DEPTH


def _held_bytes(plan: Plan) -> int:
    """Of V, and of what the outer of two levels keeps."""
    return 4 * (math.prod(plan.v_shape) + (math.prod(plan.outer_shape) if plan.levels > 1 else 0))


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    columns, vectors, block = (int(knobs[name]) for name in ("columns", "oc_vectors", "tile_block"))
    if spec.variant == "transposed":
        sizes = spec.batch * count(spec.in_size), spec.in_channels, 1, spec.out_channels * count(spec.kernel)
    else:
        sizes = spec.batch * count(spec.out_size), spec.in_channels, count(spec.kernel), spec.out_channels
    staged = spec.activation in LONG_ACTIVATIONS
    left = without_past(knobs["left"])
    copies, levels = left != "sums", 2 if left == "twice" else 1
    plan = Plan(*sizes, columns, vectors, target.lanes, block, int(knobs["parts"]), copies, staged, levels=levels)
    ahead = 4 * math.prod(plan.u_shape) > target.l2_bytes // 2
    return replace(plan, weights_ahead=ahead, past=is_past(knobs["left"]))


strassen = Strassen()
